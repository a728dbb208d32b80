#!/bin/sh
# Writes src/conch/pb from the .proto files here. Called by `make proto`; the result is committed.
#
# Other packages (tritonclient, grpcio-health-checking) ship messages with the same full names, and protobuf's default
# pool refuses a second definition. So ours go into a pool of their own, conch.pb.pool.POOL.
set -eu

here=$(cd "$(dirname "$0")" && pwd)
out="$here/../src/conch/pb"
python=${PYTHON:-python3}
files="model_config grpc_service health reflection reflection_alpha"

cd "$here"
# shellcheck disable=SC2086
"$python" -m grpc_tools.protoc -I. --python_out="$out" --pyi_out="$out" $(for file in $files; do echo "$file.proto"; done)

for file in $files; do
  sed -i \
    -e 's/^from google\.protobuf import descriptor_pool as _descriptor_pool$/from conch.pb.pool import POOL as _POOL/' \
    -e "s/(DESCRIPTOR, '\([a-z_]*_pb2\)'/(DESCRIPTOR, 'conch.pb.\1'/" \
    -e 's/_descriptor_pool\.Default()/_POOL/' \
    -e 's/^import \([a-z_]*_pb2\) as /from conch.pb import \1 as /' \
    "$out/${file}_pb2.py" "$out/${file}_pb2.pyi"
  if grep -n '_descriptor_pool' "$out/${file}_pb2.py"; then
    echo "generate.sh: ${file}_pb2.py still uses the default pool; the generator's output has changed" >&2
    exit 1
  fi
done
