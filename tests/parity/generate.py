"""The generate extension: flat JSON in, flat JSON or server-sent events out."""

from __future__ import annotations

from typing import Any

from parity.cases import ADD_SUB, Case, Http, get, post


def ask(name: str, model: str, body: Any, headers: dict[str, str] | None = None, *, how: str = "generate") -> Http:
    return post(f"{how} {model}: {name}", f"/v2/models/{model}/{how}", body, headers)


def mapping() -> list[Case]:
    """How members become tensors and parameters."""
    chat: dict[str, Any] = {
        "a scalar": {"text_input": "hi"},
        "an array of one": {"text_input": ["hi"]},
        "an array": {"text_input": ["a", "b"]},
        "an empty array": {"text_input": []},
        "an empty string": {"text_input": ""},
        "nested arrays": {"text_input": [["a"], ["b"]]},
        "two tensors": {"text_input": "hi", "max_tokens": 3},
        "a number for a string": {"text_input": 5},
        "null for a tensor": {"text_input": None},
        "an object for a tensor": {"text_input": {"a": 1}},
        "mixed array": {"text_input": ["a", 1]},
        "a string for a number": {"text_input": "hi", "max_tokens": "3"},
        "a fraction for an integer": {"text_input": "hi", "max_tokens": 2.5},
        "two elements for one": {"text_input": "hi", "max_tokens": [1, 2]},
        "a negative number": {"text_input": "hi", "max_tokens": -2},
        "a boolean for a number": {"text_input": "hi", "max_tokens": True},
        "id": {"id": "r1", "text_input": "hi"},
        "id is a number": {"id": 7, "text_input": "hi"},
        "id is empty": {"id": "", "text_input": "hi"},
        "parameters of each kind": {"text_input": "hi", "s": "t", "i": -3, "b": True, "d": 0.5, "u": 5},
        "a large integer parameter": {"text_input": "hi", "i": 2**63 - 1},
        "a huge integer parameter": {"text_input": "hi", "i": 2**63},
        "a null parameter": {"text_input": "hi", "n": None},
        "an array parameter": {"text_input": "hi", "a": [1, 2]},
        "an empty array parameter": {"text_input": "hi", "a": []},
        "an array of strings as parameter": {"text_input": "hi", "stop": ["x", "y"]},
        "an object parameter": {"text_input": "hi", "o": {"k": 1}},
        "nested parameters": {"text_input": "hi", "parameters": {"k": "v", "max_tokens": 2}},
        "nested parameters are empty": {"text_input": "hi", "parameters": {}},
        "nested parameters are an array": {"text_input": "hi", "parameters": [1]},
        "nested parameters are a string": {"text_input": "hi", "parameters": "p"},
        "nested twice": {"text_input": "hi", "parameters": {"parameters": {"k": 1}}},
        "a tensor among the parameters alone": {"parameters": {"text_input": "deep"}},
        "a tensor at both places": {"text_input": "hi", "parameters": {"text_input": "deep"}},
        "a name twice": b'{"text_input":"a","text_input":"b"}',
        "a parameter twice": b'{"text_input":"a","k":1,"k":2}',
        "priority and timeout": {"text_input": "hi", "priority": 3, "timeout": 1000000},
        "priority is a word": {"text_input": "hi", "priority": "high"},
        "sequence parameters": {"text_input": "hi", "sequence_id": 5, "sequence_start": True, "sequence_end": True},
        "binary_data_output": {"text_input": "hi", "binary_data_output": True},
        "a reserved name": {"text_input": "hi", "triton_x": 1},
        "stream": {"text_input": "hi", "stream": False},
        "no tensor": {"temperature": 0.5},
        "empty object": {},
        "an array for a body": [],
        "a string for a body": b'"hi"',
        "a number for a body": b"3",
        "null for a body": b"null",
        "no body": b"",
        "malformed": b"{",
        "trailing text": b'{"text_input":"a"} x',
        "unicode": {"text_input": "\u00e9 \u20ac \U0001f600"},
        "escapes": {"text_input": 'a"b\\c\n\u0001'},
    }
    return [ask(name, "chat", body) for name, body in chat.items()]


def shapes() -> list[Case]:
    return [
        ask("named as the keyword", "chat_parameters", {"text_input": "hi", "parameters": {"a": 1}}),
        ask("the tensor named as the keyword", "chat_parameters", {"text_input": "hi", "parameters": "p"}),
        ask("without the keyword", "chat_parameters", {"text_input": "hi"}),
        ask("six", "wide", {"X": [1, 2, 3, 4, 5, 6]}),
        ask("five", "wide", {"X": [1, 2, 3, 4, 5]}),
        ask("one", "wide", {"X": 1}),
        ask("two", "wide", {"X": [1, 2]}),
        ask("six", "grid", {"X": [1, 2, 3, 4, 5, 6]}),
        ask("open size", "counted", {"X": [0.5, 1, -2e10]}),
        ask("a scalar", "counted", {"X": 0.1}),
        ask("words for numbers", "counted", {"X": ["a"]}),
        ask("NaN", "counted", b'{"X":[NaN,Infinity]}'),
        ask("both inputs", "add_sub", {"INPUT0": [1, 2, 3], "INPUT1": [10, 20, 30]}),
        ask("one input missing", "add_sub", {"INPUT0": [1, 2, 3]}),
        ask("two rows", "add_sub", {"INPUT0": [1, 2, 3, 4, 5, 6], "INPUT1": [1, 2, 3, 4, 5, 6]}),
        ask("the body of an infer request", "add_sub", ADD_SUB),
        ask("reshaped", "reshape", {"X": 5}),
        ask("FP16", "types", {"INPUT_FP16": [1.5]}),
        ask("BOOL", "types", {"INPUT_BOOL": [True, False]}),
        ask("BOOL from numbers", "types", {"INPUT_BOOL": [1, 0]}),
        ask("UINT64", "types", {"INPUT_UINT64": 18446744073709551615}),
        ask("INT8 and FP64", "types", {"INPUT_INT8": [-1, 2], "INPUT_FP64": 0.1}),
        ask("nothing", "types", {}),
        ask("what the model sees", "seen", {"X": 1, "id": "g1", "k": "v", "n": 5}),
        ask("nested", "seen", {"X": 1, "parameters": {"k": "v", "deep": 0.25}}),
        ask("an exception", "raises", {"X": 1}),
        *(ask(f"error {code}", "errors", {"X": code}) for code in range(8)),
        ask("unknown model", "nobody", {"X": 1}),
        ask("model that has no text", "linear", {"x": [1, 2, 3]}),
        post("generate versions: one", "/v2/models/versions/versions/3/generate", {"IN": 1}),
        post("generate versions: unknown", "/v2/models/versions/versions/4/generate", {"IN": 1}),
        get("generate by GET", "/v2/models/chat/generate"),
        get("generate_stream by GET", "/v2/models/chat/generate_stream"),
        ask("gzip said", "chat", {"text_input": "hi"}, {"Content-Encoding": "gzip"}),
        ask("identity said", "chat", {"text_input": "hi"}, {"Content-Encoding": "identity"}),
        ask("compressed answer wished", "chat", {"text_input": "hi"}, {"Accept-Encoding": "gzip"}),
        ask("header length", "chat", {"text_input": "hi"}, {"Inference-Header-Content-Length": "5"}),
        ask("metrics wished", "chat", {"text_input": "hi"}, {"endpoint-load-metrics-format": "json"}),
    ]


def streams() -> list[Case]:
    def both(name: str, model: str, body: Any) -> list[Case]:
        return [ask(name, model, body), ask(name, model, body, how="generate_stream")]

    cases: list[Case] = []
    for name, body in (
        ("three", {"IN": [5, 6, 7]}),
        ("one", {"IN": 5}),
        ("one, final with it", {"IN": 5, "LAST": True}),
        ("two, final with the last", {"IN": [1, 2], "LAST": True}),
        ("none", {"IN": []}),
        ("an error alone", {"IN": -1}),
        ("an error alone, final with it", {"IN": -1, "LAST": True}),
        ("an error first", {"IN": [-3, 4]}),
        ("an error in the middle", {"IN": [1, -2, 3]}),
        ("an error at the end", {"IN": [1, -2], "LAST": True}),
        ("with an id", {"id": "s1", "IN": [1, 2]}),
        ("with parameters", {"IN": [1, 2], "k": "v"}),
        ("input missing", {"LAST": True}),
        ("wrong type", {"IN": "x"}),
        ("many", {"IN": list(range(50))}),
    ):
        cases += both(name, "repeat", body)
    for name, body in (
        ("plain", {"text_input": "hi", "max_tokens": 2, "id": "c1"}),
        ("unicode", {"text_input": "\u00e9\n\u20ac"}),
        ("malformed", b"{"),
        ("no tensor", {}),
        ("a tensor of the wrong type", {"text_input": 1}),
    ):
        cases.append(ask(name, "chat", body, how="generate_stream"))
    return [
        *cases,
        *(ask(f"error {code}", "errors", {"X": code}, how="generate_stream") for code in (0, 2, 4, 5)),
        ask("an exception", "raises", {"X": 1}, how="generate_stream"),
        ask("unknown model", "nobody", {"X": 1}, how="generate_stream"),
        ask("FP16", "types", {"INPUT_FP16": [1.5]}, how="generate_stream"),
        post("generate_stream versions: one", "/v2/models/versions/versions/3/generate_stream", {"IN": 1}),
        ask("an array", "counted", {"X": [1, 2.5, 3]}, how="generate_stream"),
        ask("gzip said", "chat", {"text_input": "hi"}, {"Content-Encoding": "gzip"}, how="generate_stream"),
        post("infer repeat: decoupled", "/v2/models/repeat/infer", {"inputs": []}),
    ]


CASES: list[Case] = mapping() + shapes() + streams()
