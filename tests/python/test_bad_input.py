"""`glmctl export` refuses bad checkpoints by name, with the right exit status, and leaves no folder behind."""

import json
import os
import pickle
import resource
import shutil
import signal
import struct
import subprocess
import tempfile
import unittest
import zipfile
from pathlib import Path

from exported import CHECKPOINTS, GLMCTL

BAD_INPUT, IO_ERROR = 65, 74


class Canary:
    """Pickles to a call of `os.system`."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


def edit_json(path, **changes):
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def repack(path, change):
    """Writes an archive again with `change(name, bytes)` in place of each entry."""
    with zipfile.ZipFile(path) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in entries.items():
            archive.writestr(name, *change(name, data))


class Refusals(unittest.TestCase):
    def setUp(self):
        scratch = tempfile.TemporaryDirectory(prefix="glmd-bad-")
        self.addCleanup(scratch.cleanup)
        self.scratch = Path(scratch.name)

    def checkpoint(self, fixture):
        folder = self.scratch / "checkpoint"
        shutil.rmtree(folder, ignore_errors=True)
        return Path(shutil.copytree(CHECKPOINTS / fixture, folder))

    def refuse(self, folder, status, *words, limit=None):
        """Exports and checks exit status, words of the message, and that nothing is left."""

        def limited():
            # What a full disk does to a write, without one.
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

        before = set(self.scratch.iterdir())
        done = subprocess.run(
            [GLMCTL, "export", folder, "--out", self.scratch / "out", "--quant", "int8", "--block", "32"],
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
            preexec_fn=limited if limit else None,
        )
        self.assertEqual(done.returncode, status, done.stderr)
        for word in words:
            self.assertIn(word, done.stderr)
        self.assertEqual(set(self.scratch.iterdir()), before)

    def test_truncated_and_lying_headers(self):
        folder = self.checkpoint("glm-edge")
        weights = folder / "model.safetensors"
        whole = weights.read_bytes()
        for spoiled in (
            whole[:5],
            whole[: len(whole) // 2],
            struct.pack("<Q", 1 << 62) + whole[8:],
            whole.replace(b'"shape":[320,64]', b'"shape":[321,64]'),
        ):
            self.assertNotEqual(spoiled, whole)
            weights.write_bytes(spoiled)
            self.refuse(folder, BAD_INPUT, "model.safetensors")

    def test_weights_that_are_no_numbers(self):
        folder = self.checkpoint("glm-edge")
        weights = folder / "model.safetensors"
        raw = bytearray(weights.read_bytes())
        (length,) = struct.unpack("<Q", raw[:8])
        name = "model.layers.1.mlp.down_proj.weight"
        begin = 8 + length + json.loads(raw[8 : 8 + length])[name]["data_offsets"][0]
        for bits in (0x7FC0, 0x7F80):
            raw[begin + 10 : begin + 12] = struct.pack("<H", bits)
            weights.write_bytes(raw)
            self.refuse(folder, BAD_INPUT, "model.safetensors", name, "[0, 5]")

    def test_shapes_that_disagree_with_the_configuration(self):
        for key, value, tensor in (
            ("vocab_size", 300, "model.embed_tokens.weight"),
            ("intermediate_size", 95, "model.layers.0.mlp.gate_up_proj.weight"),
            ("num_hidden_layers", 1, "model.layers.1."),
            ("num_hidden_layers", 3, "model.layers.2."),
        ):
            folder = self.checkpoint("glm-edge")
            # The last ids are padding, so the tokenizer alone does not tell.
            edit_json(folder / "config.json", **{key: value})
            if key == "vocab_size":
                self.refuse(folder, BAD_INPUT)
            else:
                self.refuse(folder, BAD_INPUT, tensor)

    def test_a_pickle_that_calls(self):
        folder = self.checkpoint("chatglm-6b")
        canary = self.scratch.parent / f"{self.scratch.name}-canary"
        for protocol in (2, 3, 4, 5):
            evil = pickle.dumps({"lm_head.weight": Canary(canary)}, protocol)
            repack(
                folder / "pytorch_model.bin",
                lambda name, data: (evil if name.endswith("data.pkl") else data,),
            )
            # The module of `os.system` goes by its real name.
            self.refuse(folder, BAD_INPUT, "pytorch_model.bin", "posix.system")
            self.assertFalse(canary.exists())

    def test_packed_entries(self):
        folder = self.checkpoint("chatglm-6b")
        repack(
            folder / "pytorch_model.bin",
            lambda name, data: (data, zipfile.ZIP_DEFLATED if name.endswith("/data/3") else zipfile.ZIP_STORED),
        )
        self.refuse(folder, BAD_INPUT, "pytorch_model.bin", "data/3", "packed")

    def test_a_truncated_archive(self):
        folder = self.checkpoint("chatglm-6b")
        weights = folder / "pytorch_model.bin"
        weights.write_bytes(weights.read_bytes()[:-100])
        self.refuse(folder, BAD_INPUT, "pytorch_model.bin")

    def test_shards_that_are_missing_or_elsewhere(self):
        for fixture, shard in (
            ("glm4-hf", "model-00002-of-00002.safetensors"),
            ("chatglm3", "pytorch_model-00002-of-00002.bin"),
        ):
            folder = self.checkpoint(fixture)
            (folder / shard).unlink()
            self.refuse(folder, BAD_INPUT, shard)
            folder = self.checkpoint(fixture)
            (index,) = folder.glob("*.index.json")
            content = json.loads(index.read_text())
            tensor = next(iter(content["weight_map"]))
            content["weight_map"][tensor] = f"../checkpoint/{shard}"
            index.write_text(json.dumps(content))
            self.refuse(folder, BAD_INPUT, index.name, tensor)
            content["weight_map"][tensor] = shard
            content["weight_map"]["no.such.tensor"] = shard
            index.write_text(json.dumps(content))
            self.refuse(folder, BAD_INPUT, shard)

    def test_a_tokenizer_beyond_the_vocabulary(self):
        folder = self.checkpoint("glm-edge")
        tokenizer = json.loads((folder / "tokenizer.json").read_text())
        highest = max(token["id"] for token in tokenizer["added_tokens"])
        token = next(token for token in tokenizer["added_tokens"] if token["id"] == highest)
        tokenizer["added_tokens"].append(token | {"id": 5000, "content": "<|beyond|>"})
        tokenizer["model"]["vocab"]["<|beyond|>"] = 5000
        (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
        self.refuse(folder, BAD_INPUT, "<|beyond|>", "5000", "320")

    def test_a_full_disk(self):
        folder = self.checkpoint("glm-edge")
        self.refuse(folder, IO_ERROR, limit=40_000)

    def test_a_folder_that_is_not_there(self):
        self.refuse(self.scratch / "nothing", BAD_INPUT, "nothing")


if __name__ == "__main__":
    unittest.main()
