"""
Answer gRPC's server reflection from the descriptors that protobuf has: request message in, response message out.

[Source: https://github.com/grpc/grpc/blob/master/doc/server-reflection.md] v1 and v1alpha differ in their package
only, so one set of messages serves both; what describes v1, which is not installed, is made of the other.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool
from grpc_reflection.v1alpha import reflection_pb2

Request = reflection_pb2.ServerReflectionRequest
Response = reflection_pb2.ServerReflectionResponse

#: gRPC's codes, https://grpc.github.io/grpc/core/md_doc_statuscodes.html
_INVALID_ARGUMENT, _NOT_FOUND = 3, 5


def _describe_v1() -> None:
    """Add to the pool what gRPC's package for Python lacks; ``grpcurl describe`` asks for each service listed."""
    old, new = "grpc.reflection.v1alpha", "grpc.reflection.v1"
    file = descriptor_pb2.FileDescriptorProto()
    reflection_pb2.DESCRIPTOR.CopyToProto(file)
    file.name, file.package = "grpc/reflection/v1/reflection.proto", new
    for field in (field for message in file.message_type for field in message.field if field.type_name):
        field.type_name = field.type_name.replace(f".{old}.", f".{new}.")
    for method in (method for service in file.service for method in service.method):
        method.input_type = method.input_type.replace(f".{old}.", f".{new}.")
        method.output_type = method.output_type.replace(f".{old}.", f".{new}.")
    descriptor_pool.Default().AddSerializedFile(file.SerializeToString())


_describe_v1()


def answer(request: Any, services: Sequence[str]) -> Any:
    """
    Return the response to one request; one that can't be met has an error_response.

    Args:
        services: What is listed, in order.
    """
    kind = request.WhichOneof("message_request")
    if kind == "list_services":
        listed = [reflection_pb2.ServiceResponse(name=name) for name in services]
        return _response(request, list_services_response=reflection_pb2.ListServiceResponse(service=listed))
    find = _FINDERS.get(kind)
    if find is None:
        return _error(request, _INVALID_ARGUMENT, "the request asks for nothing that is known")
    try:
        return find(request)
    except KeyError:
        return _error(request, _NOT_FOUND, "not found")


def _by_filename(request: Any) -> Any:
    return _files(request, descriptor_pool.Default().FindFileByName(request.file_by_filename))


def _by_symbol(request: Any) -> Any:
    symbol, pool = request.file_containing_symbol, descriptor_pool.Default()
    try:
        file = pool.FindFileContainingSymbol(symbol)
    except KeyError:
        # The pool counts methods among a file's symbols in some of its implementations only.
        method: Any = pool.FindMethodByName(symbol)
        file = method.containing_service.file
    return _files(request, file)


def _by_extension(request: Any) -> Any:
    wanted, pool = request.file_containing_extension, descriptor_pool.Default()
    extended = pool.FindMessageTypeByName(wanted.containing_type)
    extension: Any = pool.FindExtensionByNumber(extended, wanted.extension_number)
    return _files(request, extension.file)


def _extension_numbers(request: Any) -> Any:
    pool = descriptor_pool.Default()
    extended = pool.FindMessageTypeByName(request.all_extension_numbers_of_type)
    numbers = sorted(extension.number for extension in pool.FindAllExtensions(extended))
    return _response(
        request,
        all_extension_numbers_response=reflection_pb2.ExtensionNumberResponse(
            base_type_name=extended.full_name, extension_number=numbers
        ),
    )


_FINDERS: dict[str | None, Callable[[Any], Any]] = {
    "file_by_filename": _by_filename,
    "file_containing_symbol": _by_symbol,
    "file_containing_extension": _by_extension,
    "all_extension_numbers_of_type": _extension_numbers,
}


def _files(request: Any, descriptor: Any) -> Any:
    """Return a file and all that it imports, each once, the file itself first."""
    found: dict[str, Any] = {}
    waiting = [descriptor]
    while waiting:
        file = waiting.pop()
        if file.name not in found:
            found[file.name] = file
            waiting.extend(file.dependencies)
    texts = []
    for file in found.values():
        proto = descriptor_pb2.FileDescriptorProto()
        file.CopyToProto(proto)
        texts.append(proto.SerializeToString())
    return _response(
        request, file_descriptor_response=reflection_pb2.FileDescriptorResponse(file_descriptor_proto=texts)
    )


def _error(request: Any, code: int, text: str) -> Any:
    return _response(request, error_response=reflection_pb2.ErrorResponse(error_code=code, error_message=text))


def _response(request: Any, **fields: Any) -> Any:
    return Response(valid_host=request.host, original_request=request, **fields)
