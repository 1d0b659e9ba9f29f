"""Exported graphs give the golden logits in plain onnxruntime, however they are fed."""

import json
import re
import tempfile
import unittest
from pathlib import Path

import numpy as np
import onnx
from tokenizers import Tokenizer

from exported import FIXTURES, Model, cases, export

# Unquantised logits agree within this.
TOLERANCE = 2e-5
# INT8 rows point the same way: every row where attention is calm, and half of the rows as the fixtures are.
COSINE = 0.999
# The wide random weights of the fixtures make sharp attention, which amplifies the rounding of weights and of
# activations; no row strays farther than this.
STRAY = 0.99
# Queries and keys of the calm copies are smaller by this, and scores by its square.
CALM = 0.25
PAGE = 4096


def cosines(a, b):
    return (a * b).sum(-1) / np.linalg.norm(a, axis=-1) / np.linalg.norm(b, axis=-1)


def unpacked(packed, bits):
    """Unsigned integers along the last axis, the first of two in the low half of a byte."""
    if bits == 8:
        return packed
    return np.stack([packed & 15, packed >> 4], -1).reshape(*packed.shape[:-1], -1)


def in_f32(model):
    """The same graph with activations left in f32."""
    changed = onnx.ModelProto()
    changed.CopyFrom(model)
    for node in changed.graph.node:
        for attribute in node.attribute:
            if attribute.name == "accuracy_level":
                attribute.i = 1
    return changed


def calmed(directory, out):
    """The same model with smaller attention scores: query and key rows of the fused product times `CALM`."""
    model = onnx.load(directory / "model.onnx")
    spec = json.loads((directory / "glm.json").read_text())["spec"]
    rows = (spec["heads"] + spec["kv_heads"]) * spec["head_dim"]
    changed = 0
    for tensor in model.graph.initializer:
        if re.fullmatch(r"layers\.\d+\.attention\.qkv\.(scales|weight|bias)", tensor.name):
            values = onnx.numpy_helper.to_array(tensor).copy()
            values[:rows] *= CALM
            tensor.CopyFrom(onnx.numpy_helper.from_array(values, tensor.name))
            changed += 1
    assert changed >= spec["layers"], f"{directory}: no fused product found"
    out.mkdir()
    onnx.save(model, out / "model.onnx")
    return Model(out)


def dequantised(model):
    """The same graph with plain products of the weights that the integers stand for."""
    changed = onnx.ModelProto()
    changed.CopyFrom(model)
    stored = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in changed.graph.initializer}
    for node in changed.graph.node:
        if node.op_type != "MatMulNBits":
            continue
        attributes = {attribute.name: attribute.i for attribute in node.attribute}
        packed, scales = (stored[name] for name in node.input[1:3])
        integers = unpacked(packed, attributes["bits"]).astype(np.float32)
        scales = scales.reshape(len(packed), -1, 1)
        zero = np.float32(1 << (attributes["bits"] - 1))
        if len(node.input) > 3 and node.input[3]:
            points = stored[node.input[3]].reshape(len(packed), -1)
            zero = unpacked(points, attributes["bits"])[:, : scales.shape[1], None].astype(np.float32)
        weight = ((integers - zero) * scales).reshape(len(packed), -1)[:, : attributes["K"]]
        name = f"{node.input[1]}.plain"
        changed.graph.initializer.append(onnx.numpy_helper.from_array(np.ascontiguousarray(weight.T), name))
        product = onnx.helper.make_node("MatMul", [node.input[0], name], list(node.output), name=node.name)
        node.CopyFrom(product)
    return changed


class Graphs(unittest.TestCase):
    def each_case(self, quant):
        for name in FIXTURES:
            model = Model(export(name, quant))
            seen = 0
            for case in cases(name):
                yield name, model, case
                seen += 1
            self.assertGreater(seen, 0, name)

    def ways(self, case):
        """All at once, token by token after the prompt, and several tokens at once after it."""
        prompt, length = case.prompt, len(case)
        yield []
        yield list(range(prompt, length))
        yield [prompt, (prompt + length) // 2] if length > prompt + 1 else [prompt]
        if case.bidirectional == 0:
            yield [1, prompt // 2, prompt]
        elif case.bidirectional > 1:
            # Rows that see nothing after the prefix may be cut off from it.
            yield [case.bidirectional]

    def test_unquantised_logits_are_those_of_others(self):
        worst = 0.0
        for name, model, case in self.each_case("none"):
            for cuts in self.ways(case):
                cuts = sorted({cut for cut in cuts if 0 < cut < len(case)})
                off = float(np.abs(model.run_case(case, cuts) - case.logits).max())
                worst = max(worst, off)
                self.assertLessEqual(off, TOLERANCE, f"{name}: {case.name} cut at {cuts}")
        print(f"\nunquantised logits are off by at most {worst:.2e}")

    def test_int8_rows_point_the_same_way(self):
        for name, model, case in self.each_case("int8"):
            for cuts in ([], list(range(case.prompt, len(case)))):
                cosine = cosines(model.run_case(case, cuts), case.logits)
                what = f"{name}: {case.name} {cosine}"
                self.assertGreaterEqual(float(np.median(cosine)), COSINE, what)
                self.assertGreaterEqual(float(cosine.min()), STRAY, what)

    def test_every_int8_row_points_the_same_way_where_attention_is_calm(self):
        worst = 1.0
        for name in FIXTURES:
            with self.subTest(fixture=name), tempfile.TemporaryDirectory() as scratch:
                plain, int8 = (calmed(export(name, quant), Path(scratch) / quant) for quant in ("none", "int8"))
                for case in cases(name):
                    for cuts in ([], list(range(case.prompt, len(case)))):
                        # The unquantised graph is itself held against other implementations.
                        cosine = cosines(int8.run_case(case, cuts), plain.run_case(case, cuts))
                        worst = min(worst, float(cosine.min()))
                        self.assertGreaterEqual(float(cosine.min()), COSINE, f"{case.name} {cosine}")
        print(f"\nINT8 rows have a cosine of at least {worst:.5f}")

    def test_rows_of_a_batch_do_not_see_each_other(self):
        for name, model, case in self.each_case("none"):
            # The first sequence whole, the second one token shorter and padded on the right.
            ids = np.repeat(case.ids, 2, 0)
            ids[1, 1] = (ids[1, 1] + 1) % 200
            alone, _ = self.once(model, case, ids[1:])
            both, _ = self.once(model, case, ids)
            np.testing.assert_allclose(both[1], alone[0], atol=TOLERANCE, err_msg=name)
            np.testing.assert_allclose(both[0], case.logits, atol=TOLERANCE, err_msg=name)

    def once(self, model, case, ids):
        batch = len(ids)
        extra = {}
        if model.prefix_lm:
            extra = {
                "positions": np.repeat(case.positions, batch, 0),
                "mask": np.repeat(case.visible()[None], batch, 0),
            }
        return model.run(ids, model.empty(batch), **extra)

    def test_a_padded_batch_steps_as_its_sequences_do(self):
        for name in FIXTURES:
            model = Model(export(name, "none"))
            if model.prefix_lm:
                continue
            for case in cases(name):
                with self.subTest(fixture=name):
                    # Right-padded prompts of different lengths, as GroupQueryAttention wants them.
                    length, short = case.prompt, case.prompt - 3
                    ids = np.repeat(case.ids[:, :length], 2, 0)
                    ids[1, short:] = 0
                    mask = np.ones((2, length), np.int64)
                    mask[1, short:] = 0
                    logits, _ = model.run(ids, model.empty(2), mask=mask)
                    np.testing.assert_allclose(logits[0], case.logits[:length], atol=TOLERANCE)
                    np.testing.assert_allclose(logits[1, :short], case.logits[:short], atol=TOLERANCE)


class Directories(unittest.TestCase):
    def test_external_data_is_where_the_graph_says_and_aligned(self):
        for name in FIXTURES:
            for quant in ("none", "int8", "int4", "int4-zp"):
                with self.subTest(fixture=name, quant=quant):
                    directory = export(name, quant)
                    model = onnx.load(directory / "model.onnx", load_external_data=False)
                    size = (directory / "model.onnx.data").stat().st_size
                    outside = 0
                    for tensor in model.graph.initializer:
                        if tensor.data_location == onnx.TensorProto.EXTERNAL:
                            place = {entry.key: entry.value for entry in tensor.external_data}
                            self.assertEqual(place["location"], "model.onnx.data")
                            begin, length = int(place["offset"]), int(place["length"])
                            self.assertEqual(begin % PAGE, 0, tensor.name)
                            self.assertLessEqual(begin + length, size, tensor.name)
                            outside += 1
                    self.assertGreater(outside, 0)
                    # Reads every byte of it and compares lengths with shapes.
                    whole = onnx.load(directory / "model.onnx")
                    for tensor in whole.graph.initializer:
                        onnx.numpy_helper.to_array(tensor)

    def test_integers_are_the_nearest_to_the_weights(self):
        """Reads the integers as the operator's description says, with numpy alone."""
        for name in FIXTURES:
            plain = onnx.load(export(name, "none") / "model.onnx")
            weights = {tensor.name: tensor for tensor in plain.graph.initializer}
            for quant in ("int8", "int4", "int4-zp"):
                with self.subTest(fixture=name, quant=quant):
                    model = onnx.load(export(name, quant) / "model.onnx")
                    stored = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
                    nodes = [node for node in model.graph.node if node.op_type == "MatMulNBits"]
                    self.assertGreater(len(nodes), 0)
                    for node in nodes:
                        weight = weights[node.input[1].replace(".values", ".weight")]
                        self.check_nearest(node, stored, onnx.numpy_helper.to_array(weight))

    def check_nearest(self, node, stored, weight):
        attributes = {attribute.name: attribute.i for attribute in node.attribute}
        bits, block, inputs = attributes["bits"], attributes["block_size"], attributes["K"]
        packed, scales = (stored[name] for name in node.input[1:3])
        integers = unpacked(packed, bits).astype(np.float64)
        scales = scales.reshape(len(packed), -1, 1).astype(np.float64)
        zero = float(1 << (bits - 1))
        if len(node.input) > 3 and node.input[3]:
            points = stored[node.input[3]].reshape(len(packed), -1)
            zero = unpacked(points, bits)[:, : scales.shape[1], None].astype(np.float64)
        found = ((integers - zero) * scales).reshape(len(packed), -1)[:, :inputs]
        # Half a step; a rounded zero point moves the ends of a range by up to another half.
        step = 0.5 if np.isscalar(zero) else 1.0
        allowed = step * np.repeat(scales[:, :, 0], block, 1)[:, :inputs] * (1 + 1e-4)
        self.assertTrue((np.abs(found - weight) <= allowed).all(), node.name)

    def test_products_of_integers_are_those_of_the_weights_they_stand_for(self):
        """The runtime's own product, activations in f32, against plain products of the same weights."""
        for name in FIXTURES:
            for quant in ("int8", "int4", "int4-zp"):
                with self.subTest(fixture=name, quant=quant), tempfile.TemporaryDirectory() as scratch:
                    model = onnx.load(export(name, quant) / "model.onnx")
                    exact, plain = Path(scratch) / "exact", Path(scratch) / "plain"
                    for directory, change in ((exact, in_f32), (plain, dequantised)):
                        directory.mkdir()
                        onnx.save(change(model), directory / "model.onnx")
                    exact, plain = Model(exact), Model(plain)
                    for case in cases(name):
                        stepped = list(range(case.prompt, len(case)))
                        for cuts in ([], stepped):
                            off = np.abs(exact.run_case(case, cuts) - plain.run_case(case, cuts)).max()
                            self.assertLessEqual(float(off), 2e-4, case.name)

    def test_tokenizers_load_and_stay_within_the_vocabulary(self):
        for name in FIXTURES:
            with self.subTest(fixture=name):
                directory = export(name, "none")
                tokenizer = Tokenizer.from_file(str(directory / "tokenizer.json"))
                rows = json.loads((directory / "glm.json").read_text())["spec"]["vocab_rows"]
                self.assertLessEqual(tokenizer.get_vocab_size(), rows)
                self.assertGreater(len(tokenizer.encode("the light is on").ids), 0)


if __name__ == "__main__":
    unittest.main()
