"""The dates of certificates, read from their bytes: held against the cryptography package."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pki import Pki

from edge.setup.server_checks import certificate_validities, validity

SECONDS = st.datetimes(datetime(1955, 1, 1), datetime(2090, 1, 1)).map(lambda when: when.replace(microsecond=0))


def test_a_file_with_several_certificates_gives_each_ones_dates(tmp_path):
    from cryptography import x509

    pki = Pki(tmp_path / "pki")
    pki.device("pi-1", days=12)
    chain = tmp_path / "chain.pem"
    chain.write_bytes(b"a comment\n" + pki.bytes("pi-1.pem") + pki.bytes("ca.pem"))
    theirs = x509.load_pem_x509_certificates(chain.read_bytes())
    assert certificate_validities(chain) == [(one.not_valid_before_utc, one.not_valid_after_utc) for one in theirs]


@settings(max_examples=20)
@given(since=SECONDS, days=st.integers(1, 40_000))
def test_any_dates_come_back(since, days):
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.hazmat.primitives.serialization import Encoding

    since, until = since.replace(tzinfo=UTC), since.replace(tzinfo=UTC) + timedelta(days=days)
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([])
    made = x509.CertificateBuilder(name, name, key.public_key(), 7, since, until).sign(key, hashes.SHA256())
    assert validity(made.public_bytes(Encoding.DER)) == (since, until)


@given(data=st.binary(max_size=60))
def test_what_is_no_certificate_is_told(data):
    with pytest.raises(ValueError, match="it is no certificate"):
        validity(data)


def test_a_file_without_one_is_told(tmp_path):
    (tmp_path / "x.pem").write_text("hello")
    with pytest.raises(ValueError, match="it holds no certificate"):
        certificate_validities(tmp_path / "x.pem")
