#![no_main]

#[path = "../bodies.rs"]
#[allow(dead_code)]
mod bodies;
#[path = "../../src/onnx/tests/support/zip.rs"]
#[allow(dead_code)]
mod zip;

libfuzzer_sys::fuzz_target!(|data: &[u8]| bodies::archive(data));
