"""The KServe v2 protocol with Triton's extensions, as JSON and as protobuf."""
