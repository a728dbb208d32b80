"""System shared memory: registered, asked about, used in and out, unregistered.

@KEY@ is the client's region; @KEY@_1 to @KEY@_9 are other names of the same memory, as the recorded release cannot
register a key twice: it closes the first region's file and then uses its number again.
"""

from __future__ import annotations

from typing import Any

from parity.cases import A_RAW, B_RAW, Case, Grpc, Memory, b64, binary, get, infer, post, strings, tensor

KEY = "@KEY@"
NAMES = 9
#: The client's region: its size, and what is in it at the start (A, B, A again, then two strings).
SIZE = 8192
#: The recorded release maps a region from its offset on, so that must be a whole number of pages.
TEXT_AT = 4096
CONTENT = (A_RAW + B_RAW + A_RAW).ljust(TEXT_AT, b"\0") + strings(b"ab", b"c")
ROOT = "/v2/systemsharedmemory"


def register(name: str, region: str, body: Any) -> Case:
    return post(f"memory: {name}", f"{ROOT}/region/{region}/register", body)


def at(region: str, size: Any, offset: Any = None) -> dict[str, Any]:
    parameters = {"shared_memory_region": region, "shared_memory_byte_size": size}
    return {"parameters": parameters if offset is None else {**parameters, "shared_memory_offset": offset}}


def g_at(region: Any, size: Any = None, offset: Any = None) -> dict[str, Any]:
    parameters: dict[str, Any] = {"shared_memory_region": {"string_param": region}}
    if size is not None:
        parameters["shared_memory_byte_size"] = {"int64_param": str(size)}
    if offset is not None:
        parameters["shared_memory_offset"] = {"int64_param": str(offset)}
    return {"parameters": parameters}


def registration() -> list[Case]:
    whole = {"key": KEY, "offset": 0, "byte_size": SIZE}
    return [
        get("memory: status at the start", f"{ROOT}/status"),
        get("memory: status of one that is not there", f"{ROOT}/region/r/status"),
        register("register", "r", whole),
        register("register again", "r", whole),
        register("register a key again", "twice", whole),
        post("memory: unregister that", f"{ROOT}/region/twice/unregister", b""),
        register("register with an offset within a page", "odd", {"key": KEY + "_6", "offset": 1024, "byte_size": 64}),
        post("memory: unregister that too", f"{ROOT}/region/odd/unregister", b""),
        register("register under another name", "r2", {"key": KEY + "_1", "byte_size": 64}),
        register("register with an offset", "late", {"key": KEY + "_2", "offset": TEXT_AT, "byte_size": 64}),
        register("register, name with odd characters", "a.b-c%20d", {"key": KEY + "_3", "byte_size": 8}),
        register("register, no key", "bad", {"byte_size": 8}),
        register("register, no size", "bad", {"key": KEY + "_9"}),
        register("register, empty body", "bad", b""),
        register("register, malformed", "bad", b"{"),
        register("register, an array", "bad", []),
        register("register, key is a number", "bad", {"key": 5, "byte_size": 8}),
        register("register, size is a word", "bad", {"key": KEY + "_9", "byte_size": "8"}),
        register("register, size is negative", "bad", {"key": KEY + "_9", "byte_size": -8}),
        register("register, size 0", "zero", {"key": KEY + "_9", "byte_size": 0}),
        register("register, offset is a word", "bad", {"key": KEY + "_9", "offset": "0", "byte_size": 8}),
        register("register, offset is negative", "bad", {"key": KEY + "_9", "offset": -8, "byte_size": 8}),
        register("register, larger than the region", "bad", {"key": KEY + "_9", "byte_size": SIZE + 1}),
        register("register, offset past the end", "bad", {"key": KEY + "_9", "offset": SIZE + 1, "byte_size": 8}),
        register(
            "register, offset and size past the end", "bad", {"key": KEY + "_9", "offset": SIZE - 4, "byte_size": 8}
        ),
        register("register, unknown key", "bad", {"key": "/conch_no_such_key", "byte_size": 8}),
        register("register, empty key", "bad", {"key": "", "byte_size": 8}),
        register("register, a key of slashes", "bad", {"key": "//", "byte_size": 8}),
        register("register, a path as key", "bad", {"key": "/../etc/passwd", "byte_size": 8}),
        register("register, a reserved key", "bad", {"key": "/triton_python_backend_shm_region_x", "byte_size": 8}),
        get("memory: status", f"{ROOT}/status"),
        get("memory: status of one", f"{ROOT}/region/late/status"),
        get("memory: register by GET", f"{ROOT}/region/r/register"),
        post("memory: status by POST", f"{ROOT}/status", b""),
        get("memory: wrong path", f"{ROOT}/region/r"),
        get("memory: cuda status", "/v2/cudasharedmemory/status"),
        get("memory: cuda status of one that is not there", "/v2/cudasharedmemory/region/g/status"),
        get("memory: cuda status of a system region", "/v2/cudasharedmemory/region/r/status"),
        post("memory: cuda unregister", "/v2/cudasharedmemory/unregister", b""),
        Grpc("grpc memory: status", "SystemSharedMemoryStatus"),
        Grpc("grpc memory: status of one", "SystemSharedMemoryStatus", {"name": "late"}),
        Grpc("grpc memory: status of one that is not there", "SystemSharedMemoryStatus", {"name": "none"}),
        Grpc(
            "grpc memory: register", "SystemSharedMemoryRegister", {"name": "g", "key": KEY + "_4", "byte_size": "128"}
        ),
        Grpc(
            "grpc memory: register again",
            "SystemSharedMemoryRegister",
            {"name": "g", "key": KEY + "_4", "byte_size": "8"},
        ),
        Grpc("grpc memory: register, no name", "SystemSharedMemoryRegister", {"key": KEY + "_5", "byte_size": "8"}),
        Grpc("grpc memory: register, no key", "SystemSharedMemoryRegister", {"name": "bad", "byte_size": "8"}),
        Grpc(
            "grpc memory: register, unknown key",
            "SystemSharedMemoryRegister",
            {"name": "bad", "key": "/conch_no_such_key", "byte_size": "8"},
        ),
        Grpc(
            "grpc memory: register, too large",
            "SystemSharedMemoryRegister",
            {"name": "bad", "key": KEY + "_9", "byte_size": str(SIZE * 2)},
        ),
        Grpc("grpc memory: cuda status", "CudaSharedMemoryStatus"),
        Grpc("grpc memory: cuda unregister", "CudaSharedMemoryUnregister"),
    ]


def use_http() -> list[Case]:
    def add(name: str, first: Any, second: Any, outputs: Any = None) -> Case:
        a, b = tensor("INPUT0", "FP32", [1, 3], **first), tensor("INPUT1", "FP32", [1, 3], **second)
        body = {"inputs": [a, b], "outputs": outputs or [{"name": "OUTPUT0"}]}
        return infer(f"memory, {name}", "add_sub", body)

    def out(name: str, where: Any, **more: Any) -> Case:
        parameters = {**where["parameters"], **more}
        return add(name, at("r", 12), at("r", 12, 12), [{"name": "OUTPUT0", "parameters": parameters}])

    text = tensor("TEXT", "BYTES", [1, 2], **at("r", 11, TEXT_AT))
    return [
        add("both in", at("r", 12), at("r", 12, 12)),
        add("one in, one JSON", at("r", 12), {"data": [1, 2, 3]}),
        add("by another region", at("r2", 12, 24), at("r", 12, 12)),
        add("unknown region", at("none", 12), at("r", 12, 12)),
        add("system region asked for by number", at(5, 12), at("r", 12, 12)),
        add("size too small", at("r", 8), at("r", 12, 12)),
        add("size too large", at("r", 16), at("r", 12, 12)),
        add("size is a word", at("r", "12"), at("r", 12, 12)),
        add("size 0", at("r", 0), at("r", 12, 12)),
        add("no size", {"parameters": {"shared_memory_region": "r"}}, at("r", 12, 12)),
        add("no region", {"parameters": {"shared_memory_byte_size": 12}}, at("r", 12, 12)),
        add("offset past the end", at("r", 12, SIZE), at("r", 12, 12)),
        add("offset far past the end", at("r", 12, 2**40), at("r", 12, 12)),
        add("offset and size past the end", at("r", 12, SIZE - 8), at("r", 12, 12)),
        add("offset and size to the end", at("r", 12, SIZE - 12), at("r", 12, 12)),
        add("offset is negative", at("r", 12, -4), at("r", 12, 12)),
        add("offset is a word", at("r", 12, "0"), at("r", 12, 12)),
        add("unaligned", at("r", 12, 1), at("r", 12, 12)),
        add("and data", {"data": [1, 2, 3], **at("r", 12)}, at("r", 12, 12)),
        add("and binary size", {"parameters": {**at("r", 12)["parameters"], "binary_data_size": 12}}, at("r", 12, 12)),
        binary(
            "memory, and a binary input",
            "add_sub",
            {
                "inputs": [
                    tensor("INPUT0", "FP32", [1, 3], **at("r", 12)),
                    tensor("INPUT1", "FP32", [1, 3], parameters={"binary_data_size": 12}),
                ]
            },
            B_RAW,
        ),
        infer("memory, strings", "text", {"inputs": [text]}),
        infer("memory, strings cut off", "text", {"inputs": [{**text, **at("r", 10, TEXT_AT)}]}),
        infer("memory, empty strings", "text", {"inputs": [{**text, **at("r", 8, 2048)}]}),
        out("out", at("r", 12, 2048)),
        Memory("memory after out", 2040, 32),
        out("out, room to spare", at("r", 64, 2100)),
        Memory("memory after room to spare", 2100, 16),
        out("out too small", at("r", 8, 2200)),
        Memory("memory after too small", 2200, 16),
        out("out of an unknown region", at("none", 12)),
        out("out past the end", at("r", 12, SIZE - 8)),
        out("out offset past the end", at("r", 12, SIZE)),
        out("out without size", {"parameters": {"shared_memory_region": "r"}}),
        out("out and binary", at("r", 12, 2048), binary_data=True),
        out("out and not binary", at("r", 12, 2048), binary_data=False),
        out("out and classes", at("r", 12, 2048), classification=1),
        infer("memory, strings out", "text", {"inputs": [text], "outputs": [{"name": "UPPER", **at("r", 32, 2300)}]}),
        Memory("memory after strings", 2300, 16),
        infer(
            "memory, one out, one JSON",
            "add_sub",
            {
                "inputs": [
                    tensor("INPUT0", "FP32", [1, 3], **at("r", 12)),
                    tensor("INPUT1", "FP32", [1, 3], **at("r", 12, 12)),
                ],
                "outputs": [{"name": "OUTPUT1", **at("r", 12, 2400)}, {"name": "OUTPUT0"}],
            },
        ),
        Memory("memory after one out", 2400, 12),
    ]


def use_grpc() -> list[Case]:
    def add(name: str, first: Any, second: Any, outputs: Any = None, raw: Any = ()) -> Case:
        message = {
            "model_name": "add_sub",
            "inputs": [tensor("INPUT0", "FP32", [1, 3], **first), tensor("INPUT1", "FP32", [1, 3], **second)],
            "outputs": outputs or [{"name": "OUTPUT0"}],
            "raw_input_contents": list(raw),
        }
        return Grpc(f"grpc memory, {name}", "ModelInfer", message)

    second = g_at("r", 12, 12)

    def out(name: str, where: Any) -> Case:
        return add(name, g_at("r", 12), second, [{"name": "OUTPUT1", **where}, {"name": "OUTPUT0"}])

    return [
        add("both in", g_at("r", 12), second),
        add("one in, one raw", g_at("r", 12), {}, raw=[b64(B_RAW)]),
        add("one in, one typed", g_at("r", 12), {"contents": {"fp32_contents": [1, 2, 3]}}),
        add("and contents", {**g_at("r", 12), "contents": {"fp32_contents": [1, 2, 3]}}, second),
        add("and too many raw", g_at("r", 12), second, raw=[b64(B_RAW)]),
        add("unknown region", g_at("none", 12), second),
        add("size too small", g_at("r", 8), second),
        add("no size", g_at("r"), second),
        add("offset past the end", g_at("r", 12, SIZE), second),
        add("offset and size past the end", g_at("r", 12, SIZE - 8), second),
        add("offset is negative", g_at("r", 12, -1), second),
        add("size is negative", g_at("r", -12), second),
        out("out", g_at("r", 12, 3000)),
        Memory("memory after grpc out", 3000, 16),
        out("out too small", g_at("r", 8, 3100)),
        out("out of an unknown region", g_at("none", 12)),
        out("out past the end", g_at("r", 12, SIZE - 4)),
        out("out without size", g_at("r")),
    ]


def removal() -> list[Case]:
    return [
        post("memory: unregister", f"{ROOT}/region/r2/unregister", b""),
        post("memory: unregister again", f"{ROOT}/region/r2/unregister", b""),
        get("memory: status of the unregistered", f"{ROOT}/region/r2/status"),
        infer("memory, of the unregistered", "text", {"inputs": [tensor("TEXT", "BYTES", [1, 2], **at("r2", 11))]}),
        Grpc("grpc memory: unregister", "SystemSharedMemoryUnregister", {"name": "g"}),
        Grpc("grpc memory: unregister again", "SystemSharedMemoryUnregister", {"name": "g"}),
        Grpc("grpc memory: status of what is left", "SystemSharedMemoryStatus"),
        post("memory: unregister all", f"{ROOT}/unregister", b""),
        get("memory: status at the end", f"{ROOT}/status"),
        Grpc("grpc memory: unregister all", "SystemSharedMemoryUnregister"),
    ]


CASES: list[Case] = registration() + use_http() + use_grpc() + removal()
