//! Paged attention, INT8/INT4 matrix products and the KV pool of glmd. Knows no ONNX and no model.
