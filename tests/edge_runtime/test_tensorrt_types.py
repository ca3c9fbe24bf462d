"""The engine module against NVIDIA's own bindings, oldest and newest: every name and argument that it uses is there.

The bindings' wheels are downloaded (5 MB each) into a temporary folder; what they link to is replaced by empty
libraries, which is enough to import them and have their interface written down. Nothing is computed.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tests.needs import download, lacking

ROOT = Path(__file__).parents[2]
BINDINGS = {"10.3": "10.3.0", "11.4": "11.4.0.106"}
FUNCTIONS = {
    "nvinfer": ("createInferBuilder_INTERNAL", "createInferRuntime_INTERNAL", "createInferRefitter_INTERNAL",
                "getPluginRegistry", "getBuilderPluginRegistry", "getInferLibVersion"),
    "nvinfer_plugin": ("initLibNvInferPlugins",),
    "nvonnxparser": ("createNvOnnxParser_INTERNAL", "createNvOnnxParserRefitter_INTERNAL", "getNvOnnxParserVersion"),
}  # fmt: skip
OURS = "edge_runtime/engines/tensorrt.py"


def interface(version: str, folder: Path) -> Path:
    """A folder with ``tensorrt.pyi``, generated from the real bindings of ``version``."""
    if shutil.which("gcc") is None:
        lacking("gcc is not installed")
    download(folder, f"tensorrt_cu12_bindings=={BINDINGS[version]}")
    zipfile.ZipFile(next(folder.glob("*.whl"))).extractall(folder / "site")
    libraries = folder / "libraries"
    libraries.mkdir()
    major = version.partition(".")[0]
    for library, functions in FUNCTIONS.items():
        source = libraries / f"{library}.c"
        source.write_text("".join(f"void *{function}(void) {{ return 0; }}\n" for function in functions))
        name = f"lib{library}.so.{major}"
        subprocess.run(
            ["gcc", "-shared", "-fPIC", f"-Wl,-soname,{name}", str(source), "-o", str(libraries / name)], check=True
        )
    environment = {**os.environ, "LD_LIBRARY_PATH": str(libraries), "PYTHONPATH": str(folder / "site")}
    stubgen = [str(Path(sys.executable).with_name("stubgen")), "--inspect-mode", "-m", "tensorrt_bindings.tensorrt"]
    subprocess.run([*stubgen, "-o", str(folder / "out")], env=environment, check=True, capture_output=True)
    lines = (folder / "out" / "tensorrt_bindings" / "tensorrt.pyi").read_text().splitlines()
    stubs = folder / "stubs"
    stubs.mkdir()
    # One signature of theirs is no Python, and we do not use it.
    (stubs / "tensorrt.pyi").write_text(
        "\n".join(line for line in lines if "add_scale_nd" not in line) + "\n__version__: str\n"
    )
    return stubs


def faults(source: Path, stubs: Path) -> list[str]:
    """mypy's errors about ``source`` itself; the generated interface has many of its own."""
    words = [
        sys.executable,
        "-m",
        "mypy",
        "--no-warn-unused-ignores",
        "--allow-untyped-calls",
        "--cache-dir",
        str(stubs / "cache"),
    ]
    done = subprocess.run(
        [*words, str(source)],
        cwd=ROOT, env={**os.environ, "MYPYPATH": str(stubs)}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert "Found" in done.stdout or "Success" in done.stdout, done.stdout[-500:] + done.stderr[-500:]
    return [line for line in done.stdout.splitlines() if line.startswith(str(source)) and ": error:" in line]


@pytest.mark.long
@pytest.mark.parametrize("version", BINDINGS)
def test_the_engine_module_uses_what_the_bindings_have(version: str, tmp_path: Path) -> None:
    stubs = interface(version, tmp_path)
    assert faults(Path(OURS), stubs) == []
    wrong = tmp_path / "wrong.py"
    wrong.write_text(
        "import tensorrt as trt\n"
        "def run(context: trt.IExecutionContext) -> None:\n"
        "    context.execute_async_v2(0)\n"
        "    context.execute_async_v3('stream')\n"
    )
    found = faults(wrong, stubs)
    assert len(found) == 2 and "execute_async_v2" in found[0] and "incompatible type" in found[1], found
