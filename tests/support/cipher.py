"""A serializer that encrypts, as an application would configure it."""

from __future__ import annotations

import hashlib
import hmac
import secrets

from langgraph.checkpoint.serde.encrypted import EncryptedSerializer

from enhanced_checkpointing.serialization import SharingSerializer


class StreamCipher:
    """A key stream and a checksum from hashes: enough that nothing is read without the key, or after a change."""

    def __init__(self, key: bytes) -> None:
        self._key = key

    def encrypt(self, plaintext: bytes) -> tuple[str, bytes]:
        nonce = secrets.token_bytes(16)
        hidden = self._hidden(nonce, plaintext)
        return "stream", nonce + self._checksum(nonce + hidden) + hidden

    def decrypt(self, ciphername: str, ciphertext: bytes) -> bytes:
        assert ciphername == "stream"
        nonce, checksum, hidden = ciphertext[:16], ciphertext[16:48], ciphertext[48:]
        if not hmac.compare_digest(checksum, self._checksum(nonce + hidden)):
            raise ValueError("the key is another one")
        return self._hidden(nonce, hidden)

    def _hidden(self, nonce: bytes, data: bytes) -> bytes:
        stream = hashlib.shake_256(self._key + nonce).digest(len(data))
        return bytes(one ^ other for one, other in zip(data, stream, strict=True))

    def _checksum(self, data: bytes) -> bytes:
        return hmac.digest(self._key, data, "sha256")


def encrypting(key: bytes = b"a key") -> SharingSerializer:
    return SharingSerializer(EncryptedSerializer(StreamCipher(key)))
