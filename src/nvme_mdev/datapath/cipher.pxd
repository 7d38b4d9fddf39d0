"""AES-256-XTS with the number of a 512-byte sector as the tweak (IEEE 1619), by libcrypto.

What `cryptsetup --cipher aes-xts-plain64 --key-size 512` calls it. Only this module is linked with
libcrypto, and it is loaded by the first namespace that has a key.
"""

from libc.stdint cimport uint8_t, uint64_t

cdef enum:
    #: Bytes: two AES-256 keys, of the data and of the tweak.
    KEY_SIZE = 64
    SECTOR_SHIFT = 9
    SECTOR_SIZE = 512

#: What one thread needs, not to be shared: key schedules, made once (EVP_CIPHER_CTX).
cdef struct cipher_t:
    void *encrypting
    void *decrypting


cdef class Key:
    cdef uint8_t *value


#: Use this key from now on. ValueError: libcrypto does not take it.
cdef int cipher_use(cipher_t *cipher, Key key) except -1
#: Wipe the key schedules; there is no key any more.
cdef void cipher_forget(cipher_t *cipher) noexcept
#: Encrypt or decrypt whole sectors, the first of which has this number, where they are. False:
#: libcrypto failed, the data is neither.
cdef bint cipher_encrypt(
    cipher_t *cipher, uint8_t *data, uint64_t sector, uint64_t length) noexcept nogil
cdef bint cipher_decrypt(
    cipher_t *cipher, uint8_t *data, uint64_t sector, uint64_t length) noexcept nogil
