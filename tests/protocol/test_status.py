"""The one table between our errors and gRPC's codes, both ways."""

from __future__ import annotations

import grpc
import pytest

from coe.cascade import (
    ConfigError,
    InputError,
    ModelError,
    TierError,
    TierFailed,
    TierOverloaded,
    TierRefused,
    TierRejected,
    TierTimeout,
    TierUnavailable,
)
from coe.cascade.errors import NotAllowed, Unauthenticated
from coe.protocol.codec import WireError
from coe.protocol.status import FROM_CODE, TABLE, UnknownModel, from_rpc_error, to_status


class Failed(grpc.RpcError):
    """A failed call, as the client sees it."""

    def __init__(self, code: grpc.StatusCode, details: str | None) -> None:
        self._code, self._details = code, details

    def code(self) -> grpc.StatusCode:
        return self._code

    def details(self) -> str | None:
        return self._details


@pytest.mark.parametrize("kind", [TierOverloaded, TierTimeout, TierUnavailable, TierRejected])
def test_what_a_tier_behind_the_server_met_is_what_the_device_meets(kind):
    back = from_rpc_error("cloud", Failed(*to_status(kind("best", "why"))))
    assert type(back) is kind
    assert back.tier == "cloud"
    assert "tier best: why" in str(back)


@pytest.mark.parametrize(
    "error",
    [
        WireError("input", "one", "two", "mend it"),
        InputError("not an image"),
        ConfigError(["labels differ"]),
    ],
)
def test_what_trying_again_cannot_mend_is_a_rejection(error):
    code, text = to_status(error)
    assert text == str(error)
    assert type(from_rpc_error("cloud", Failed(code, text))) is TierRejected


@pytest.mark.parametrize(
    "error", [UnknownModel("model: expected one of a, got 'b'"), Unauthenticated("no token"), NotAllowed("not you")]
)
def test_what_a_token_or_a_reload_mends_is_a_refusal(error):
    assert type(from_rpc_error("cloud", Failed(*to_status(error)))) is TierRefused


@pytest.mark.parametrize(
    "error", [RuntimeError("secret"), ModelError("secret"), KeyError("secret"), TypeError("secret")]
)
def test_what_is_not_in_the_table_is_internal_and_says_nothing(error):
    code, text = to_status(error)
    assert code is grpc.StatusCode.INTERNAL
    assert "secret" not in text
    assert type(from_rpc_error("cloud", Failed(code, text))) is TierUnavailable


def test_a_model_of_the_servers_own_that_fails_is_not_the_callers_fault_and_its_words_stay_here():
    code, text = to_status(TierFailed("best", "member a: OSError: secret"))
    assert code is grpc.StatusCode.INTERNAL
    assert text == "tier best: no member voted (the server's log says why)"
    assert type(from_rpc_error("cloud", Failed(code, text))) is TierUnavailable


def test_every_code_means_something_to_the_cascade():
    for code in grpc.StatusCode:
        error = from_rpc_error("cloud", Failed(code, None))
        assert isinstance(error, TierError)
        assert code.name in str(error)
        assert type(error) is FROM_CODE.get(code, TierRejected)


def test_a_more_special_error_stands_before_the_one_it_is_a_kind_of():
    kinds = [kind for kind, _ in TABLE]
    for at, kind in enumerate(kinds):
        assert not any(issubclass(kind, earlier) for earlier in kinds[:at])


@pytest.mark.parametrize(
    "details",
    ["CLIENT: Sent message larger than max (5 vs. 4)", "SERVER: Received message larger than max (5 vs. 4)"],
)
def test_a_message_over_the_limit_is_a_rejection_not_an_overload(details):
    assert type(from_rpc_error("cloud", Failed(grpc.StatusCode.RESOURCE_EXHAUSTED, details))) is TierRejected


def test_an_overload_stays_an_overload():
    error = from_rpc_error("cloud", Failed(grpc.StatusCode.RESOURCE_EXHAUSTED, "Concurrent RPC limit exceeded!"))
    assert type(error) is TierOverloaded
    assert error.reason == "overloaded"
