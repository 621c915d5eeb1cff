"""Small picture networks in ONNX files, written in ONNX's own text form."""

from __future__ import annotations

from pathlib import Path

HEAD = '<ir_version: 8, opset_import: ["" : 18]>'

NETWORKS = {
    "enlarge": "net (float[1, 3, h, w] x) => (float[1, 3, h2, w2] y) { "
    's = Constant<value = float[4] {1.0, 1.0, 2.0, 2.0}> () y = Resize<mode = "nearest"> (x, , s) }',
    "signed": "net (float[n, 3, h, w] x) => (float[n, 3, h, w] y) { "
    "one = Constant<value = float[1] {1.0}> () two = Constant<value = float[1] {2.0}> () "
    "g = Constant<value = float[1] {1.3}> () u = Add (x, one) v = Div (u, two) k = Abs (v) c = Pow (k, g) "
    "d = Mul (c, two) y = Sub (d, one) }",
    "bytes": "net (float[n, 3, h, w] x) => (float[n, 3, h, w] y) { "
    "d = Constant<value = float[1] {255.0}> () y = Div (x, d) }",
    "mask": "net (float[n, 3, h, w] x) => (float[n, 1, h, w] y) { "
    "a = Constant<value = int64[1] {1}> () m = ReduceMean (x, a) y = Sub (m, m) }",
    "logits": "net (float[n, 3, h, w] x) => (float[n, 1, h, w] y) { "
    "a = Constant<value = int64[1] {1}> () m = ReduceMean (x, a) b = Constant<value = float[1] {0.5}> () "
    "c = Constant<value = float[1] {20.0}> () d = Sub (m, b) y = Mul (d, c) }",
    "last": "net (float[n, h, w, 3] x) => (float[n, h, w, 3] y) { y = Identity (x) }",
    "stepped": "net (float[1, 3, h, w] x) => (float[1, 3, h, w] y) { "
    "p = AveragePool<kernel_shape = [8, 8], strides = [8, 8]> (x) "
    's = Constant<value = float[4] {1.0, 1.0, 8.0, 8.0}> () r = Resize<mode = "nearest"> (p, , s) y = Add (r, x) }',
    "coarse": "net (float[n, 3, h, w] x) => (float[n, 1, h, w] y) { "
    "a = Constant<value = int64[1] {1}> () m = ReduceMean (x, a) "
    "y = AveragePool<kernel_shape = [4, 4], strides = [4, 4]> (m) }",
    "fixed": "net (float[1, 3, 48, 64] x) => (float[1, 3, 48, 64] y) { "
    "f = Constant<value = int64[2] {1, 9216}> () b = Constant<value = int64[4] {1, 3, 48, 64}> () "
    "v = Reshape (x, f) y = Reshape (v, b) }",
    "lying": "net (float[10, 3, 32, 32] x) => (float[10, 3, 32, 32] y) { y = Identity (x) }",
    "alone": "net (float[n, 3, h, w] x) => (float[1, 3, h, w] y) { "
    "t = Shape (x) i = Constant<value = int64[3] {1, 2, 3}> () r = Gather (t, i) "
    "o = Constant<value = int64[1] {1}> () b = Concat<axis = 0> (o, r) y = Reshape (x, b) }",
    "number": "net (float[1, 3, h, w] x, double[1] weight) => (float[1, 3, h, w] y) { "
    "w1 = Cast<to = 1> (weight) half = Constant<value = float[1] {0.5}> () f = Add (w1, half) y = Mul (x, f) }",
    "tensor": "net (float[n, 3, h, w] x, float[1, 3] source) => (float[n, 3, h, w] y) { "
    "b = Constant<value = int64[4] {1, 3, 1, 1}> () v = Reshape (source, b) y = Mul (x, v) }",
    "second": "net (float[n, 3, h, w] x, float[n, 3, h, w] other) => (float[n, 3, h, w] y) { "
    "s = Add (x, other) t = Constant<value = float[1] {0.5}> () y = Mul (s, t) }",
    "second of its own": "net (float[1, 3, h, w] x, float[1, 3, 12, 12] other) => (float[1, 3, h, w] y) { "
    "m = GlobalAveragePool (other) s = Add (x, m) t = Constant<value = float[1] {0.5}> () y = Mul (s, t) }",
    "several": "net (float[n, 3, h, w] x) => (float[1] z, float[n, 3, h, w] y, float[n, 1, h, w] m) { "
    "z = Constant<value = float[1] {1.0}> () y = Identity (x) a = Constant<value = int64[1] {1}> () "
    "m = ReduceMean (x, a) }",
    "whole bytes": "net (uint8[n, h, w, 3] x) => (uint8[n, h, w, 3] y) { y = Identity (x) }",
}
"""Networks by what is special about each."""

HOSTILE = {
    "vast": "net (float[1, 3, h, w] x) => (float[1, 3, h2, w2] y) { "
    's = Constant<value = float[4] {1.0, 1.0, 100000.0, 100000.0}> () y = Resize<mode = "nearest"> (x, , s) }',
    "vast unseen": "net (float[1, 3, h, w] x) => (float[1, 3, h, w] y) { "
    "m = ReduceMax<keepdims = 0> (x) big = Constant<value = float {1000000.0}> () "
    "v = Add (m, big) i = Cast<to = 7> (v) "
    "o = Constant<value = int64[1] {2}> () one = Constant<value = int64[1] {1}> () "
    "r = Reshape (i, one) e = Expand (r, o) c = ConstantOfShape (e) n = ReduceMax<keepdims = 0> (c) y = Add (x, n) }",
    "no picture": "net (float[1, 3] x) => (float[1, 3] y) { y = Identity (x) }",
    "labels": "net (float[n, 3, h, w] x) => (float[n, 3] y) { "
    "a = Constant<value = int64[2] {2, 3}> () y = ReduceMean<keepdims = 0> (x, a) }",
    "features": "net (float[n, 3, h, w] x) => (float[n, 6, h, w] y) { y = Concat<axis = 1> (x, x) }",
    "three more": "net (float[n, 3, h, w] x, float[1] a, float[1] b) => (float[n, 3, h, w] y) { "
    "z = Mul (x, a) y = Mul (z, b) }",
}
"""Files that no picture goes through, by what is wrong."""


def write_network(text: str, path: Path) -> Path:
    """Writes a network of this text."""
    import onnx

    path.parent.mkdir(parents=True, exist_ok=True)
    onnx.save_model(onnx.parser.parse_model(f"{HEAD} {text}"), str(path))
    return path
