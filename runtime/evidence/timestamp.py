"""Time stamps (RFC 3161): the word of an authority that some bytes existed at a time.

The bytes are those of a signed head, as it is kept in a file; the stamp lies beside it, with `.tsr` added to
its name. So no tool of ours is needed to make one, or to check it:

    openssl ts -query -data kept.note -sha256 -no_nonce -cert -out kept.note.tsq
    openssl ts -verify -data kept.note -in kept.note.tsr -CAfile tsa.pem

A request (`.tsq`) is made, and a response (`.tsr`) checked, without a network. There is no nonce: it would
keep an old response from being passed off as a new one, and an old stamp of these very bytes says more, not
less.

What is checked of a stamp: it is of these bytes; the authority has signed it (RFC 5652, section 5.4, with the
attribute that names its certificate, RFC 5035); that certificate is one of those given, or was issued under
one of them; it is for time stamping and nothing else (RFC 3161, section 2.3); and all were valid at the time
in the stamp. Whether a certificate was revoked is not known offline.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from typing import TypeAlias

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID

from gradwarden.policy.frozen import frozen
from gradwarden.runtime.errors import EvidenceError
from gradwarden.runtime.evidence import der
from gradwarden.runtime.evidence.der import Children, DerError, Element

MAX_STAMP = 1_048_576
"""The longest response, in bytes."""

MAX_PATH = 8
"""Certificates between the authority's own and one that was given."""

_SIGNED_DATA = der.oid("1.2.840.113549.1.7.2")
_STAMP_INFO = der.oid("1.2.840.113549.1.9.16.1.4")
_CONTENT_TYPE = der.oid("1.2.840.113549.1.9.3")
_MESSAGE_DIGEST = der.oid("1.2.840.113549.1.9.4")
_SIGNING_CERTIFICATE = der.oid("1.2.840.113549.1.9.16.2.12")
_SIGNING_CERTIFICATE_V2 = der.oid("1.2.840.113549.1.9.16.2.47")

_Hash: TypeAlias = hashes.SHA256 | hashes.SHA384 | hashes.SHA512

_HASHES: dict[bytes, _Hash] = {
    der.oid("2.16.840.1.101.3.4.2.1"): hashes.SHA256(),
    der.oid("2.16.840.1.101.3.4.2.2"): hashes.SHA384(),
    der.oid("2.16.840.1.101.3.4.2.3"): hashes.SHA512(),
}
_SIGNATURES: dict[bytes, tuple[str, _Hash | None]] = {
    der.oid("1.2.840.113549.1.1.1"): ("rsa", None),
    der.oid("1.2.840.113549.1.1.11"): ("rsa", hashes.SHA256()),
    der.oid("1.2.840.113549.1.1.12"): ("rsa", hashes.SHA384()),
    der.oid("1.2.840.113549.1.1.13"): ("rsa", hashes.SHA512()),
    der.oid("1.2.840.10045.4.3.2"): ("ec", hashes.SHA256()),
    der.oid("1.2.840.10045.4.3.3"): ("ec", hashes.SHA384()),
    der.oid("1.2.840.10045.4.3.4"): ("ec", hashes.SHA512()),
}
"""Algorithms of signatures: the kind of key, and the hash; None: the one that the signer names beside it."""

_UNREADABLE = (ValueError, UnsupportedAlgorithm, x509.InvalidVersion, x509.DuplicateExtension)
"""What reading a certificate, or anything else, may raise (`DerError` is a ValueError)."""


@frozen
class Timestamp:
    """A stamp that holds: when the bytes existed, and the certificate of the authority that says so."""

    time: datetime
    authority: x509.Certificate

    @property
    def name(self) -> str:
        """The authority's name, as its certificate has it."""
        return self.authority.subject.rfc4514_string()


def make_request(data: bytes) -> bytes:
    """Return a request for a stamp of these bytes (TimeStampReq, RFC 3161, section 2.4.1), by SHA-256.

    The response is to hold the authority's certificate.
    """
    algorithm = der.write(
        der.SEQUENCE, der.write(der.OID, der.oid("2.16.840.1.101.3.4.2.1")), der.write(der.NULL)
    )
    imprint = der.write(der.SEQUENCE, algorithm, der.write(der.OCTETS, hashlib.sha256(data).digest()))
    version, wanted = der.write(der.INTEGER, b"\x01"), der.write(der.BOOLEAN, b"\xff")
    return der.write(der.SEQUENCE, version, imprint, wanted)


def load_authorities(pem: bytes) -> list[x509.Certificate]:
    """Return the certificates of a PEM file. Raises EvidenceError where there is none."""
    try:
        return x509.load_pem_x509_certificates(pem)
    except _UNREADABLE as error:
        raise EvidenceError(
            "the file holds no certificates", help="it should be the authority's, or its issuer's, in PEM"
        ) from error


def check_stamp(response: bytes, data: bytes, authorities: Sequence[x509.Certificate]) -> Timestamp:
    """Return what a response says of these bytes. Raises EvidenceError where that cannot be believed.

    authorities: certificates that are trusted: of time-stamping authorities, or of those who certify them.
    """
    if len(response) > MAX_STAMP:
        raise EvidenceError(f"the time stamp is longer than {MAX_STAMP:,} bytes")
    try:
        signed = _Signed(_token(response))
        time = _stamped(signed.content, data)
        certificate = signed.verify(authorities)
        _check_path(certificate, signed.certificates, authorities, time)
    except _UNREADABLE as error:
        raise EvidenceError(f"the time stamp cannot be read: {error}") from error
    return Timestamp(time, certificate)


def _token(response: bytes) -> Element:
    """Return the SignedData of a TimeStampResp (RFC 3161, section 2.4.2)."""
    fields = der.read(response, der.SEQUENCE).children()
    status = fields.take(der.SEQUENCE).children().take().integer()
    if status not in (0, 1):
        raise EvidenceError(f"the authority gave no time stamp: status {status}")
    token = fields.take(der.SEQUENCE).children()
    fields.end()
    if token.take(der.OID).content != _SIGNED_DATA:
        raise DerError("it holds no signed data")
    return _explicit(token.take(der.FIRST), der.SEQUENCE)


def _explicit(element: Element, tag: int) -> Element:
    return der.read(element.content, tag)


def _stamped(info: bytes, data: bytes) -> datetime:
    """Return the time in a TSTInfo (RFC 3161, section 2.4.2), which must be about these bytes."""
    fields = der.read(info, der.SEQUENCE).children()
    if fields.take().integer() != 1:
        raise DerError("it is of an unknown version")
    fields.take(der.OID)
    imprint = fields.take(der.SEQUENCE).children()
    digest = _digest(_algorithm(imprint.take(der.SEQUENCE)), data)
    if imprint.take(der.OCTETS).content != digest:
        raise EvidenceError("the time stamp is of other bytes")
    fields.take(der.INTEGER)
    text = fields.take(der.TIME).content.decode("ascii")
    whole, _, fraction = text.removesuffix("Z").partition(".")
    if not text.endswith("Z") or len(whole) != 14 or not (whole + fraction).isdigit():
        raise DerError("it holds no time")
    # Told to the second: authorities are seldom more accurate than that.
    return datetime.strptime(whole, "%Y%m%d%H%M%S").replace(tzinfo=UTC)


class _Signed:
    """SignedData with one signer (RFC 5652, section 5.1; RFC 3161, section 2.4.2)."""

    def __init__(self, data: Element) -> None:
        fields = data.children()
        fields.take(der.INTEGER)
        fields.take(der.SET)
        inner = fields.take(der.SEQUENCE).children()
        if inner.take(der.OID).content != _STAMP_INFO:
            raise DerError("what is signed is no time stamp")
        self.content = _explicit(inner.take(der.FIRST), der.OCTETS).content
        carried = fields.maybe(der.FIRST)
        self.certificates = list(_certificates(carried))
        fields.maybe(der.SECOND)
        signers = fields.take(der.SET).children()
        self._signer = signers.take(der.SEQUENCE).children()
        signers.end()
        fields.end()

    def verify(self, authorities: Sequence[x509.Certificate]) -> x509.Certificate:
        """Return the certificate by whose key the content is signed. Raises EvidenceError."""
        self._signer.take(der.INTEGER)
        self._signer.take(der.SEQUENCE, 0x80)
        digest = _algorithm(self._signer.take(der.SEQUENCE))
        attributes = self._signer.take(der.FIRST)
        kind = self._signer.take(der.SEQUENCE).children().take(der.OID).content
        signature = self._signer.take(der.OCTETS).content
        named = _attributes(attributes)
        if _single(named, _CONTENT_TYPE).content != _STAMP_INFO:
            raise EvidenceError("the time stamp was signed as something else")
        if _single(named, _MESSAGE_DIGEST).content != _digest(digest, self.content):
            raise EvidenceError("the time stamp was changed after it was signed")
        certificate = _named_certificate(named, [*self.certificates, *authorities])
        # What is signed is the attributes as a SET, not with the tag under which they travel.
        message = der.write(der.SET, attributes.content)
        if not _holds(certificate, kind, digest, signature, message):
            raise EvidenceError("the authority's signature of the time stamp does not hold")
        return certificate


def _certificates(carried: Element | None) -> Iterator[x509.Certificate]:
    children = Children(b"" if carried is None else carried.content)
    while children:
        element = children.take()
        if element.tag == der.SEQUENCE:
            yield x509.load_der_x509_certificate(element.whole)


def _algorithm(identifier: Element) -> _Hash:
    algorithm = identifier.children().take(der.OID).content
    if algorithm not in _HASHES:
        raise EvidenceError("the time stamp uses a hash other than SHA-256, SHA-384 and SHA-512")
    return _HASHES[algorithm]


def _digest(algorithm: hashes.HashAlgorithm, data: bytes) -> bytes:
    return hashlib.new(algorithm.name, data).digest()


def _attributes(signed: Element) -> dict[bytes, Element]:
    """Return the attributes that are signed, each with its set of values; none may come twice."""
    found: dict[bytes, Element] = {}
    children = signed.children()
    while children:
        attribute = children.take(der.SEQUENCE).children()
        name = attribute.take(der.OID).content
        if name in found:
            raise DerError("an attribute comes twice")
        found[name] = attribute.take(der.SET)
    return found


def _single(attributes: dict[bytes, Element], name: bytes) -> Element:
    if name not in attributes:
        raise DerError("a signed attribute is missing")
    values = attributes[name].children()
    value = values.take()
    values.end()
    return value


def _named_certificate(
    attributes: dict[bytes, Element], known: Sequence[x509.Certificate]
) -> x509.Certificate:
    """Return the certificate that the signed attributes name first: no other can have signed.

    Only this attribute is authentic. Certificates that merely travel with a stamp anybody can add.
    """
    name = _SIGNING_CERTIFICATE_V2 if _SIGNING_CERTIFICATE_V2 in attributes else _SIGNING_CERTIFICATE
    first = _single(attributes, name).children().take(der.SEQUENCE).children().take(der.SEQUENCE).children()
    algorithm: hashes.HashAlgorithm = hashes.SHA1()
    if name == _SIGNING_CERTIFICATE_V2:
        given = first.maybe(der.SEQUENCE)
        algorithm = hashes.SHA256() if given is None else _algorithm(given)
    wanted = first.take(der.OCTETS).content
    for certificate in known:
        if certificate.fingerprint(algorithm) == wanted:
            return certificate
    raise EvidenceError(
        "the certificate that signed the time stamp is missing",
        help="add it to the file of the authority (--tsa)",
    )


def _holds(
    certificate: x509.Certificate, kind: bytes, digest: _Hash, signature: bytes, message: bytes
) -> bool:
    expected, algorithm = _SIGNATURES.get(kind, ("", None))
    key = certificate.public_key()
    algorithm = algorithm or digest
    try:
        if expected == "rsa" and isinstance(key, rsa.RSAPublicKey):
            key.verify(signature, message, padding.PKCS1v15(), algorithm)
        elif expected == "ec" and isinstance(key, ec.EllipticCurvePublicKey):
            key.verify(signature, message, ec.ECDSA(algorithm))
        else:
            raise EvidenceError("the time stamp is signed in a way that is not known here")
    except InvalidSignature:
        return False
    return True


def _check_path(
    certificate: x509.Certificate,
    known: Sequence[x509.Certificate],
    trusted: Sequence[x509.Certificate],
    time: datetime,
) -> None:
    """Raise EvidenceError unless a certificate is for time stamping, and trusted, at that time.

    known: certificates that came with the stamp.
    """
    try:
        usage = certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage)
    except x509.ExtensionNotFound:
        usage = None
    if usage is None or not usage.critical or list(usage.value) != [ExtendedKeyUsageOID.TIME_STAMPING]:
        raise EvidenceError("the certificate that signed the time stamp is not for time stamping alone")
    for below in range(MAX_PATH):
        if not certificate.not_valid_before_utc <= time <= certificate.not_valid_after_utc:
            raise EvidenceError("a certificate of the authority was not valid at the time in the stamp")
        if certificate in trusted:
            return
        # Trusted ones first: a stamp may hold a certificate of the same key by somebody else.
        issuer = next((one for one in (*trusted, *known) if _issued(certificate, one, below)), None)
        if issuer is None or issuer == certificate:
            break
        certificate = issuer
    raise EvidenceError(
        "the time stamp is by an authority that is not trusted",
        help="give its certificate, or its issuer's, with --tsa",
    )


def _issued(certificate: x509.Certificate, issuer: x509.Certificate, below: int) -> bool:
    """Return whether a certificate was issued under another, which may issue certificates.

    below: how many issuers stand between that one and the authority (RFC 5280, section 4.2.1.9).
    """
    try:
        certificate.verify_directly_issued_by(issuer)
        basic = issuer.extensions.get_extension_for_class(x509.BasicConstraints).value
        usage = issuer.extensions.get_extension_for_class(x509.KeyUsage).value
    except (*_UNREADABLE, TypeError, InvalidSignature, x509.ExtensionNotFound):
        return False
    return basic.ca and usage.key_cert_sign and (basic.path_length is None or basic.path_length >= below)
