"""Calls a server knowing nothing but the descriptor set of `make proto`, as grpcurl -protoset does.

    python protoset.py FILE HOST:PORT        (run by clients.py, in its environment)
"""

import sys

import grpc
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory


def main(path, address):
    descriptors = descriptor_pb2.FileDescriptorSet()
    with open(path, "rb") as file:
        descriptors.ParseFromString(file.read())
    pool = descriptor_pool.DescriptorPool()
    for file in descriptors.file:
        pool.Add(file)

    def message(name, **fields):
        return message_factory.GetMessageClass(pool.FindMessageTypeByName(name))(**fields)

    with grpc.insecure_channel(address) as channel:

        def call(service, method, **fields):
            described = pool.FindServiceByName(service).methods_by_name[method]
            answer = message_factory.GetMessageClass(described.output_type)
            stub = channel.unary_unary(
                f"/{service}/{method}",
                request_serializer=lambda request: request.SerializeToString(),
                response_deserializer=answer.FromString,
            )
            return stub(message(described.input_type.full_name, **fields), timeout=10)

        assert call("rushkv.v1.Kv", "Put", key=b"protoset", value=b"yes").version == 1
        assert call("rushkv.v1.Kv", "Get", key=b"protoset").record.value == b"yes"
        assert call("rushkv.RushKV", "Delete", key="protoset").success
        assert call("rushkv.v1.Cluster", "Info").node_count == 1


main(*sys.argv[1:])
