"""The service's path, methods and channel settings, shared by both ends.

Client and server settings come in pairs: a client that pings more often than its server allows is cut off.
"""

from __future__ import annotations

import json
from typing import Any

from . import inference_pb2 as pb

SERVICE = "inference.GRPCInferenceService"

METHODS: dict[str, tuple[Any, Any]] = {  # name -> (request, response)
    "ServerLive": (pb.ServerLiveRequest, pb.ServerLiveResponse),
    "ServerReady": (pb.ServerReadyRequest, pb.ServerReadyResponse),
    "ModelReady": (pb.ModelReadyRequest, pb.ModelReadyResponse),
    "ServerMetadata": (pb.ServerMetadataRequest, pb.ServerMetadataResponse),
    "ModelMetadata": (pb.ModelMetadataRequest, pb.ModelMetadataResponse),
    "ModelInfer": (pb.ModelInferRequest, pb.ModelInferResponse),
    "RepositoryIndex": (pb.RepositoryIndexRequest, pb.RepositoryIndexResponse),
    "RepositoryModelLoad": (pb.RepositoryModelLoadRequest, pb.RepositoryModelLoadResponse),
    "RepositoryModelUnload": (pb.RepositoryModelUnloadRequest, pb.RepositoryModelUnloadResponse),
}

PLATFORM = "coe"  # what ModelMetadata says of a tier or a cascade served by this project
STREAM = "ModelStreamInfer"  # many requests and answers on one call
INPUT = "input"  # the one input of a tier: BYTES as captured, or a tensor
MEMBER_VOTES = "member_votes"  # parameter of a request: true asks for what each member said, as outputs of their own
PUSHBACK = "grpc-retry-pushback-ms"  # trailing metadata of a refusal: when to come again
FRAME_BYTES = 5  # gRPC's own prefix to each message

MAX_MESSAGE_BYTES = 64 * 2**20
PING_EVERY_S = 30.0
PING_TIMEOUT_S = 10.0

Options = list[tuple[str, Any]]


def path(method: str) -> str:
    return f"/{SERVICE}/{method}"


def client_options(
    max_message_bytes: int = MAX_MESSAGE_BYTES, *, is_balanced: bool = False, checks_health: bool = False
) -> Options:
    """Settings of a channel: finite messages, keepalive, quick reconnects, retries of UNAVAILABLE alone.

    Args:
        is_balanced: several hosts may answer: calls go to each in turn, and a retry to the next one.
        checks_health: then, a host gets calls only while its `grpc.health.v1.Health/Watch` says that the service
            is SERVING, or where it does not have that service.
    """
    retry = {
        "maxAttempts": 3,
        "initialBackoff": "0.05s",
        "maxBackoff": "0.5s",
        "backoffMultiplier": 2,
        "retryableStatusCodes": ["UNAVAILABLE"],
    }
    methods: list[dict[str, Any]] = [
        {"name": [{"service": SERVICE}], "retryPolicy": retry},
        {"name": [{"service": SERVICE, "method": STREAM}]},  # its calls are asked again one by one
    ]
    config: dict[str, Any] = {"methodConfig": methods}
    if is_balanced:
        config["loadBalancingConfig"] = [{"round_robin": {}}]
        if checks_health:
            config["healthCheckConfig"] = {"serviceName": SERVICE}
    return [
        *_of_both_ends(max_message_bytes),
        ("grpc.http2.max_pings_without_data", 0),
        ("grpc.use_local_subchannel_pool", 1),  # else a new channel takes over an old one's connection, though dead
        ("grpc.initial_reconnect_backoff_ms", 200),
        ("grpc.max_reconnect_backoff_ms", 5000),
        ("grpc.dns_min_time_between_resolutions_ms", 5000),
        ("grpc.service_config", json.dumps(config)),
    ]


def server_options(max_message_bytes: int = MAX_MESSAGE_BYTES) -> Options:
    """Settings of a server: the other half of `client_options`."""
    return [
        *_of_both_ends(max_message_bytes),
        ("grpc.http2.min_ping_interval_without_data_ms", int(PING_EVERY_S * 500)),
        ("grpc.http2.max_ping_strikes", 2),
        ("grpc.so_reuseport", 0),  # a port already taken is an error, not a second server
    ]


def _of_both_ends(max_message_bytes: int) -> Options:
    return [
        ("grpc.max_send_message_length", max_message_bytes),
        ("grpc.max_receive_message_length", max_message_bytes),
        ("grpc.keepalive_time_ms", int(PING_EVERY_S * 1000)),
        ("grpc.keepalive_timeout_ms", int(PING_TIMEOUT_S * 1000)),
        ("grpc.keepalive_permit_without_calls", 1),
    ]
