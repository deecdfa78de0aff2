from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
from google.protobuf import descriptor_pb2, descriptor_pool
from grpc_health.v1 import health_pb2  # noqa: F401  (registers the files that are asked for)

from serviceradar_poller.transport.reflection import Request, answer

SERVICES = ("a.A", "b.B")
HEALTH_FILE = "grpc_health/v1/health.proto"


def files(response: Any) -> list[str]:
    return [
        descriptor_pb2.FileDescriptorProto.FromString(each).name
        for each in response.file_descriptor_response.file_descriptor_proto
    ]


def test_list() -> None:
    """Services are listed as given; the answer repeats its request and its host."""
    request = Request(host="h", list_services="*")
    response = answer(request, SERVICES)
    assert [each.name for each in response.list_services_response.service] == list(SERVICES)
    assert response.original_request == request and response.valid_host == "h"


@pytest.mark.parametrize("symbol", ["grpc.health.v1.Health", "grpc.health.v1.Health.Check"])
def test_file_of_a_symbol(symbol: str) -> None:
    """A service and a method lead to their file."""
    assert files(answer(Request(file_containing_symbol=symbol), SERVICES)) == [HEALTH_FILE]


@pytest.mark.parametrize("version", ["v1", "v1alpha"])
def test_reflection_describes_itself(version: str) -> None:
    """Either version has a file of its own that stands alone: a client with that file and no other can use it."""
    name = f"grpc.reflection.{version}.ServerReflection"
    response = answer(Request(file_containing_symbol=name), SERVICES)
    pool = descriptor_pool.DescriptorPool()
    for each in response.file_descriptor_response.file_descriptor_proto:
        pool.AddSerializedFile(each)
    method: Any = pool.FindMethodByName(f"{name}.ServerReflectionInfo")
    assert method.input_type.full_name == f"grpc.reflection.{version}.ServerReflectionRequest"
    assert method.output_type.full_name == f"grpc.reflection.{version}.ServerReflectionResponse"
    answers = {field.name for field in method.output_type.fields}
    assert {"original_request", "file_descriptor_response", "error_response"} <= answers


def test_file_with_its_imports() -> None:
    """A file comes first, then what it imports, each once."""
    found = files(answer(Request(file_by_filename="google/protobuf/descriptor.proto"), SERVICES))
    assert found == ["google/protobuf/descriptor.proto"]
    from google.protobuf import type_pb2  # noqa: F401

    found = files(answer(Request(file_by_filename="google/protobuf/type.proto"), SERVICES))
    assert found[0] == "google/protobuf/type.proto"
    assert sorted(found[1:]) == ["google/protobuf/any.proto", "google/protobuf/source_context.proto"]


def test_extension_numbers() -> None:
    """A message without extensions has none."""
    response = answer(Request(all_extension_numbers_of_type="grpc.health.v1.HealthCheckRequest"), SERVICES)
    assert response.all_extension_numbers_response.base_type_name == "grpc.health.v1.HealthCheckRequest"
    assert not response.all_extension_numbers_response.extension_number


@pytest.mark.parametrize(
    "fields",
    [
        {"file_by_filename": "no.proto"},
        {"file_containing_symbol": "no.Such"},
        {"file_containing_symbol": ""},
        {"file_containing_extension": {"containing_type": "no.Such", "extension_number": 1}},
        {"file_containing_extension": {"containing_type": "grpc.health.v1.HealthCheckRequest", "extension_number": 1}},
        {"all_extension_numbers_of_type": "no.Such"},
    ],
)
def test_not_found(fields: dict[str, Any]) -> None:
    """What is not there is an error_response with NOT_FOUND, and the stream goes on."""
    response = answer(Request(**fields), SERVICES)
    assert response.error_response.error_code == 5
    assert response.error_response.error_message == "not found"


def test_an_empty_request() -> None:
    """A request that asks for nothing is an error_response with INVALID_ARGUMENT."""
    assert answer(Request(), SERVICES).error_response.error_code == 3


@pytest.mark.slow
@pytest.mark.parametrize("module", ["server", "reflection"])
def test_the_port_needs_no_grpc_library(module: str) -> None:
    """Neither the server nor reflection loads gRPC's C core."""
    code = f"import sys, serviceradar_poller.transport.{module}; sys.exit('grpc' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=60).returncode == 0
