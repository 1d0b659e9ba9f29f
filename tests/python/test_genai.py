"""Exported causal families generate in ONNX Runtime GenAI from their genai_config.json."""

import json
import unittest

from exported import CHECKPOINTS, FIXTURES, export

try:
    import onnxruntime_genai as genai
except ImportError as error:
    raise unittest.SkipTest(f"onnxruntime-genai is not installed ({error}): its tests are skipped") from error

def greedy_case(name):
    golden = json.loads((CHECKPOINTS / name / "golden.json").read_text())
    (case,) = [case for case in golden["cases"] if case["name"] == "greedy"]
    return case


def causal():
    return [name for name in FIXTURES if greedy_case(name)["bidirectional"] == 0]


def generate(directory, prompt, length):
    """Greedy ids up to `length` in all, the prompt included."""
    model = genai.Model(str(directory))
    params = genai.GeneratorParams(model)
    params.set_search_options(do_sample=False, max_length=length, min_length=length)
    generator = genai.Generator(model, params)
    generator.append_tokens(prompt)
    while not generator.is_done():
        generator.generate_next_token()
    return [int(token) for token in generator.get_sequence(0)]


class Generation(unittest.TestCase):
    def test_only_causal_families_claim_to_run_there(self):
        self.assertGreaterEqual(len(causal()), 7)
        for name in FIXTURES:
            there = (export(name, "none") / "genai_config.json").exists()
            self.assertEqual(there, name in causal(), name)

    def test_unquantised_models_generate_the_golden_tokens(self):
        for name in causal():
            with self.subTest(fixture=name):
                case = greedy_case(name)
                ids, prompt = case["input_ids"], case["prompt_len"]
                self.assertEqual(generate(export(name, "none"), ids[:prompt], len(ids)), ids)

    def test_quantised_models_generate(self):
        for name in causal():
            with self.subTest(fixture=name):
                case = greedy_case(name)
                ids, prompt = case["input_ids"], case["prompt_len"]
                found = generate(export(name, "int8"), ids[:prompt], len(ids))
                self.assertEqual((len(found), found[:prompt]), (len(ids), ids[:prompt]))


if __name__ == "__main__":
    unittest.main()
