"""Submits, watches and stops a run over TLS as a stock gRPC client, with stubs generated from `proto/`, or with reflection alone.

    python3 clients.py STUBS|reflection ADDRESS OPERATOR_CERTS VIEWER_CERTS CONFIG RUN_ID

Needs grpcio, grpcio-tools and grpcio-reflection. Prints one JSON object with what it saw; the test compares.
"""

import json
import pathlib
import sys

import grpc


def channel(address, folder):
    """mTLS with the folder that `himpun certs init` made for a role."""
    read = lambda name: (pathlib.Path(folder) / name).read_bytes()
    credentials = grpc.ssl_channel_credentials(read("ca.pem"), read("key.pem"), read("cert.pem"))
    return grpc.secure_channel(address, credentials)


def generated(root):
    """`(stub, messages)` from the stubs in `root`."""
    sys.path.insert(0, root)
    from himpun.v1 import control_pb2, control_pb2_grpc

    return control_pb2_grpc.ControlServiceStub, control_pb2


def reflected(over):
    """The same from what the server tells of itself."""
    from google.protobuf import descriptor_pool, message_factory
    from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase

    pool = descriptor_pool.DescriptorPool(ProtoReflectionDescriptorDatabase(over))
    service = pool.FindServiceByName("himpun.v1.ControlService")

    class Messages:
        def __getattr__(self, name):
            return message_factory.GetMessageClass(pool.FindMessageTypeByName(f"himpun.v1.{name}"))

    class Stub:
        def __init__(self, over):
            for method in service.methods:
                call = over.unary_stream if method.server_streaming else over.unary_unary
                request = message_factory.GetMessageClass(method.input_type)
                response = message_factory.GetMessageClass(method.output_type)
                path = f"/{service.full_name}/{method.name}"
                setattr(self, method.name, call(path, request.SerializeToString, response.FromString))

    return Stub, Messages()


def main():
    kind, address, operator, viewer, config, run_id = sys.argv[1:]
    config = pathlib.Path(config).read_text()
    over = channel(address, operator)
    stub_type, messages = reflected(over) if kind == "reflection" else generated(kind)
    control = stub_type(over)
    protocol = control.GetServerInfo(messages.GetServerInfoRequest()).protocol
    request = messages.SubmitRunRequest(protocol=protocol, config_toml=config, workers=1, run_id=run_id)
    seen = {"submitted": control.SubmitRun(request).run_id}

    reader = stub_type(channel(address, viewer))
    seen["viewer_reads"] = reader.GetStatus(messages.GetStatusRequest(run_id=run_id)).run_id
    try:
        reader.Stop(messages.StopRequest(run_id=run_id))
    except grpc.RpcError as error:
        seen["viewer_stops"] = error.code().name

    for event in control.Watch(messages.WatchRequest(run_id=run_id)):
        if event.WhichOneof("kind") == "metrics" and "stopped_after" not in seen:
            seen["stopped_after"] = event.metrics.step
            control.Stop(messages.StopRequest(run_id=run_id))
        if event.WhichOneof("kind") == "ended":
            seen["exit_code"] = event.ended.exit_code
    try:
        stub_type(grpc.secure_channel(address, grpc.ssl_channel_credentials(
            (pathlib.Path(operator) / "ca.pem").read_bytes()
        ))).ListRuns(messages.ListRunsRequest())
    except grpc.RpcError as error:
        seen["nobody_lists"] = error.code().name
    print(json.dumps(seen))


if __name__ == "__main__":
    main()
