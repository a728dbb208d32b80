#!/bin/sh
# Installs the project, editable, with an extra into a virtual environment: install.sh PYTHON VENV EXTRA
set -eu

python=$1 venv=$2 extra=$3

"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || {
  echo "install: Conch needs Python 3.11 or newer, $python is $("$python" -V 2>&1); set PYTHON to a newer one" >&2
  exit 1
}
if [ ! -x "$venv/bin/python" ]; then
  echo "install: creating $venv"
  "$python" -m venv "$venv" || {
    echo "install: the module venv is missing; on Debian: apt-get install python3-venv" >&2
    exit 1
  }
fi
# uv resolves and installs in a fraction of pip's time; where it cannot be had, pip does the same.
if "$venv/bin/python" -m pip install -q --disable-pip-version-check uv; then
  exec "$venv/bin/uv" pip install --python "$venv/bin/python" -e ".[$extra]"
fi
echo "install: uv is not available, pip takes a little longer"
exec "$venv/bin/python" -m pip install --disable-pip-version-check -e ".[$extra]"
