#!/bin/sh
# Installs the real Triton (2.51, Python backend) and NVIDIA's perf_analyzer from public packages, to compare Conch with.
#
#   bench/triton/setup.sh [DIR]      DIR is .cache/triton under the project's root unless given
#
# Afterwards DIR/tritonserver, DIR/perf_analyzer and wrk are commands. A second run finds all there and ends at once.
# Triton comes as the server inside the nvidia-pytriton wheel; perf_analyzer as a file inside the tritonclient wheel.
set -eu

root=$(cd "$(dirname "$0")/../.." && pwd)
dir=${1:-$root/.cache/triton}
mkdir -p "$dir"
dir=$(cd "$dir" && pwd)
python=${PYTHON:-python3}

stamp="$dir/.installed"
wanted=$(cksum <"$0")
if [ "$(cat "$stamp" 2>/dev/null)" = "$wanted" ] && [ -x "$dir/tritonserver" ] && [ -x "$dir/perf_analyzer" ] &&
  command -v wrk >/dev/null && command -v h2load >/dev/null; then
  echo "Triton is installed in $dir"
  exit 0
fi
rm -f "$stamp"

say() { echo "triton: $*"; }

system_package() { # package
  say "installing the system package $1"
  as_root=
  if [ "$(id -u)" != 0 ]; then
    command -v sudo >/dev/null || { echo "triton: install the package $1, then run this again" >&2; exit 1; }
    as_root=sudo
  fi
  $as_root apt-get update -qq
  $as_root apt-get install -y -qq --no-install-recommends "$1" >/dev/null
}

# perf_analyzer and tritonserver are linked against libb64, which no wheel carries.
ldconfig -p | grep -q 'libb64\.so\.0d' || system_package libb64-0d
# Drives HTTP with JSON bodies.
command -v wrk >/dev/null || system_package wrk
# Drives both protocols with large tensors.
command -v h2load >/dev/null || system_package nghttp2-client

say "creating a virtual environment in $dir/venv"
"$python" -m venv --clear "$dir/venv"
bin="$dir/venv/bin"
# The Python backend's stub needs NumPy 1: with NumPy 2 every output is empty. onnxruntime is for the models to compare.
say "installing packages (about 200 MB)"
"$bin/pip" install -qq --disable-pip-version-check \
  'nvidia-pytriton==0.7.0' 'numpy<2' 'onnxruntime>=1.17' nvidia-cuda-runtime-cu12

site=$("$bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
version=$("$bin/python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
libpython=$("$bin/python" -c 'import sysconfig; print(sysconfig.get_config_var("LIBDIR"))')
server="$site/pytriton/tritonserver"
stub="$server/python_backend_stubs/$version/triton_python_backend_stub"
if [ ! -e "$stub" ]; then
  echo "triton: this Triton has no Python backend for Python $version, only for: $(ls "$server/python_backend_stubs" | tr '\n' ' ')" >&2
  echo "triton: set PYTHON to one of those interpreters and run this again" >&2
  exit 1
fi
# The stub is linked against the interpreter's library, which Debian keeps in a package of its own.
[ -e "$libpython/libpython$version.so.1.0" ] || ldconfig -p | grep -q "libpython$version\.so\.1\.0" ||
  system_package "libpython$version"
rm -rf "$dir/backends"
mkdir -p "$dir/backends"
cp -r "$server/backends/python" "$dir/backends/python"
cp "$stub" "$dir/backends/python/"

say "fetching perf_analyzer"
wheel=$(mktemp -d)
trap 'rm -rf "$wheel"' EXIT
"$bin/pip" download -qq --disable-pip-version-check --no-deps -d "$wheel" 'tritonclient==2.50.0'
"$bin/python" - "$wheel" "$dir/perf_analyzer.bin" <<'PY'
import pathlib
import sys
import zipfile

wheel, target = pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2])
with zipfile.ZipFile(next(wheel.glob("tritonclient-*.whl"))) as archive:
    member = next(name for name in archive.namelist() if name.endswith("/bin/perf_analyzer"))
    target.write_bytes(archive.read(member))
target.chmod(0o755)
PY

cat >"$dir/tritonserver" <<SH
#!/bin/sh
LD_LIBRARY_PATH="$site/nvidia_pytriton.libs:$libpython" PATH="$bin:\$PATH"
export LD_LIBRARY_PATH PATH
exec "$server/bin/tritonserver" --backend-directory="$dir/backends" --cache-directory="$server/caches" "\$@"
SH
cat >"$dir/perf_analyzer" <<SH
#!/bin/sh
LD_LIBRARY_PATH="$site/nvidia/cuda_runtime/lib"
export LD_LIBRARY_PATH
exec "$dir/perf_analyzer.bin" "\$@"
SH
chmod +x "$dir/tritonserver" "$dir/perf_analyzer"

# Its --help leaves with 1.
"$dir/tritonserver" --help 2>&1 | grep -q '^Usage' || { echo "triton: $dir/tritonserver does not start" >&2; exit 1; }
"$dir/perf_analyzer" --version >/dev/null 2>&1 || { echo "triton: $dir/perf_analyzer does not start" >&2; exit 1; }
echo "$wanted" >"$stamp"
echo "Triton is installed in $dir"
