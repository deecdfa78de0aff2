from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from google.protobuf.descriptor import FieldDescriptor

from serviceradar_poller.wire.pb import monitoring_pb2 as pb

ROOT = Path(__file__).resolve().parents[2]

# What deployed agents and cores understand: name=number:type; s string, b bytes, B bool, * repeated.
CONTRACT = {
    "DeviceStatusRequest": "agent_id=1:s",
    "StatusRequest": "service_name=1:s service_type=2:s agent_id=3:s poller_id=4:s details=5:s port=6:int32",
    "ResultsRequest": "service_name=1:s service_type=2:s agent_id=3:s poller_id=4:s details=5:s last_sequence=6:s "
    "completion_status=7:SweepCompletionStatus",
    "StatusResponse": "available=1:B message=2:b service_name=3:s service_type=4:s response_time=5:int64 "
    "agent_id=6:s poller_id=7:s",
    "ResultsResponse": "available=1:B data=2:b service_name=3:s service_type=4:s response_time=5:int64 agent_id=6:s "
    "poller_id=7:s timestamp=8:int64 current_sequence=9:s has_new_data=10:B "
    "sweep_completion=11:SweepCompletionStatus",
    "ResultsChunk": "data=1:b is_final=2:B chunk_index=3:int32 total_chunks=4:int32 current_sequence=5:s "
    "timestamp=6:int64",
    "ServiceStatus": "service_name=1:s available=2:B message=3:b service_type=4:s response_time=5:int64 agent_id=6:s "
    "poller_id=7:s partition=8:s source=9:s kv_store_id=10:s",
    "PollerStatusRequest": "services=1:*ServiceStatus poller_id=2:s agent_id=3:s timestamp=4:int64 partition=5:s "
    "source_ip=6:s kv_store_id=7:s",
    "PollerStatusResponse": "received=1:B",
    "PollerStatusChunk": "services=1:*ServiceStatus poller_id=2:s agent_id=3:s timestamp=4:int64 partition=5:s "
    "source_ip=6:s is_final=7:B chunk_index=8:int32 total_chunks=9:int32 kv_store_id=10:s",
    "SweepServiceStatus": "network=1:s total_hosts=2:int32 available_hosts=3:int32 ports=4:*PortStatus "
    "last_sweep=5:int64",
    "PortStatus": "port=1:int32 available=2:int32",
    "SweepCompletionStatus": "status=1:Status completion_time=2:int64 target_sequence=3:s total_targets=4:int32 "
    "completed_targets=5:int32 error_message=6:s",
}
TYPES = {
    FieldDescriptor.TYPE_STRING: "s",
    FieldDescriptor.TYPE_BYTES: "b",
    FieldDescriptor.TYPE_BOOL: "B",
    FieldDescriptor.TYPE_INT32: "int32",
    FieldDescriptor.TYPE_INT64: "int64",
}


def described(field: FieldDescriptor) -> str:
    kind = TYPES.get(field.type)
    if field.message_type is not None:
        kind = field.message_type.name
    if field.enum_type is not None:
        kind = field.enum_type.name
    return f"{field.name}={field.number}:{'*' if field.is_repeated else ''}{kind}"


@pytest.mark.slow
def test_generated_code_is_current(tmp_path: Path) -> None:
    """The committed code is what the compiler makes of proto/monitoring.proto today."""
    subprocess.run(
        [
            sys.executable,
            "-m",
            "grpc_tools.protoc",
            f"-I{ROOT / 'proto'}",
            f"--python_out={tmp_path}",
            f"--pyi_out={tmp_path}",
            str(ROOT / "proto" / "monitoring.proto"),
        ],
        check=True,
    )
    committed = ROOT / "src" / "serviceradar_poller" / "wire" / "pb"
    for name in ("monitoring_pb2.py", "monitoring_pb2.pyi"):
        assert (tmp_path / name).read_text() == (committed / name).read_text(), f"{name}: run `make proto`"


def test_field_numbers_are_the_contract() -> None:
    """Every message has exactly the fields, numbers and types that deployed peers use."""
    found = {
        name: " ".join(described(field) for field in message.fields)
        for name, message in pb.DESCRIPTOR.message_types_by_name.items()
    }
    assert found == CONTRACT


def test_completion_states() -> None:
    """The enumeration's numbers are the contract's."""
    states = pb.SweepCompletionStatus.DESCRIPTOR.enum_types_by_name["Status"].values_by_name
    assert {name: value.number for name, value in states.items()} == {
        "UNKNOWN": 0,
        "NOT_STARTED": 1,
        "IN_PROGRESS": 2,
        "COMPLETED": 3,
        "FAILED": 4,
    }


def test_services() -> None:
    """Package, services, methods and their streaming sides are the contract's."""
    assert pb.DESCRIPTOR.package == "monitoring"
    methods = {
        f"{service.full_name}/{method.name}": (
            method.input_type.name,
            method.client_streaming,
            method.output_type.name,
            method.server_streaming,
        )
        for service in pb.DESCRIPTOR.services_by_name.values()
        for method in service.methods
    }
    assert methods == {
        "monitoring.AgentService/GetStatus": ("StatusRequest", False, "StatusResponse", False),
        "monitoring.AgentService/GetResults": ("ResultsRequest", False, "ResultsResponse", False),
        "monitoring.AgentService/StreamResults": ("ResultsRequest", False, "ResultsChunk", True),
        "monitoring.PollerService/ReportStatus": (
            "PollerStatusRequest",
            False,
            "PollerStatusResponse",
            False,
        ),
        "monitoring.PollerService/StreamStatus": ("PollerStatusChunk", True, "PollerStatusResponse", False),
    }
