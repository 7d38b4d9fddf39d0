"""AES-256-XTS by libcrypto (see cipher.pxd and cipher.pyi)."""

from libc.stdint cimport uint8_t, uint64_t
from libc.stdlib cimport calloc, free
from libc.string cimport memcmp

from contextlib import suppress

cdef extern from "<openssl/crypto.h>" nogil:
    void OPENSSL_cleanse(void *memory, size_t size)

cdef extern from "<openssl/evp.h>" nogil:
    ctypedef struct EVP_CIPHER:
        pass
    ctypedef struct EVP_CIPHER_CTX:
        pass
    const EVP_CIPHER *EVP_aes_256_xts()
    EVP_CIPHER_CTX *EVP_CIPHER_CTX_new()
    void EVP_CIPHER_CTX_free(EVP_CIPHER_CTX *)
    int EVP_CipherInit_ex(EVP_CIPHER_CTX *, const EVP_CIPHER *, void *engine,
                          const unsigned char *key, const unsigned char *iv, int encrypt)
    int EVP_CipherUpdate(EVP_CIPHER_CTX *, unsigned char *out, int *out_length,
                         const unsigned char *data, int length)

cdef extern from "<endian.h>" nogil:
    uint64_t htole64(uint64_t)

cdef extern from "<sys/random.h>" nogil:
    ssize_t getrandom(void *buffer, size_t size, unsigned int flags)

cdef extern from "<unistd.h>" nogil:
    ssize_t pread(int fd, void *buffer, size_t size, long offset)
    ssize_t pwrite(int fd, const void *buffer, size_t size, long offset)

cdef enum:
    #: `EVP_CipherInit_ex`: leave the direction as it is.
    SAME_DIRECTION = -1

_CORE_FILTER = "/proc/self/coredump_filter"


# -- keys -----------------------------------------------------------------------------------------


cdef class Key:
    """A key; its bytes are in this object only, and wiped with it (see cipher.pyi)."""

    def __cinit__(self):
        self.value = <uint8_t *> calloc(1, KEY_SIZE)
        if self.value == NULL:
            raise MemoryError

    @staticmethod
    def random():
        cdef Key key = Key()
        if getrandom(key.value, KEY_SIZE, 0) != KEY_SIZE:
            raise OSError(5, "there is no randomness for a key")
        return key

    @staticmethod
    def read(int fd):
        cdef Key key = Key()
        if pread(fd, key.value, KEY_SIZE, 0) != KEY_SIZE:
            raise OSError(5, "the key cannot be read")
        if memcmp(key.value, key.value + KEY_SIZE // 2, KEY_SIZE // 2) == 0:
            raise ValueError("its two halves are the same")
        return key

    def write(self, int fd):
        if pwrite(fd, self.value, KEY_SIZE, 0) != KEY_SIZE:
            raise OSError(5, "the key cannot be written")

    def __dealloc__(self):
        if self.value != NULL:
            OPENSSL_cleanse(self.value, KEY_SIZE)
        free(self.value)


def keep_out_of_core_dumps():
    """No memory of this process is dumped: there are keys in it (see cipher.pyi)."""
    # Where there is no such file, or it is not ours, nothing is dumped anyhow.
    with suppress(FileNotFoundError, PermissionError), open(_CORE_FILTER, "w") as file:
        file.write("0")


# -- sectors --------------------------------------------------------------------------------------


cdef int use(void **context, const uint8_t *key, bint encrypt) except -1:
    if context[0] == NULL:
        context[0] = EVP_CIPHER_CTX_new()
    if context[0] == NULL or not EVP_CipherInit_ex(
            <EVP_CIPHER_CTX *> context[0], EVP_aes_256_xts(), NULL, key, NULL, encrypt):
        raise ValueError("libcrypto takes no key for AES-256-XTS")
    return 0


cdef int cipher_use(cipher_t *cipher, Key key) except -1:
    use(&cipher.encrypting, key.value, True)
    use(&cipher.decrypting, key.value, False)
    return 0


cdef void cipher_forget(cipher_t *cipher) noexcept:
    EVP_CIPHER_CTX_free(<EVP_CIPHER_CTX *> cipher.encrypting)
    EVP_CIPHER_CTX_free(<EVP_CIPHER_CTX *> cipher.decrypting)
    cipher.encrypting = cipher.decrypting = NULL


cdef bint run(void *context, uint8_t *data, uint64_t sector, uint64_t length) noexcept nogil:
    cdef uint64_t[2] tweak
    cdef uint64_t done = 0
    cdef int out
    tweak[1] = 0
    while done < length:
        tweak[0] = htole64(sector)
        if not EVP_CipherInit_ex(<EVP_CIPHER_CTX *> context, NULL, NULL, NULL,
                                 <const unsigned char *> tweak, SAME_DIRECTION):
            return False
        if not EVP_CipherUpdate(<EVP_CIPHER_CTX *> context, data + done, &out, data + done, SECTOR_SIZE):
            return False
        done += SECTOR_SIZE
        sector += 1
    return True


cdef bint cipher_encrypt(
    cipher_t *cipher, uint8_t *data, uint64_t sector, uint64_t length
) noexcept nogil:
    return run(cipher.encrypting, data, sector, length)


cdef bint cipher_decrypt(
    cipher_t *cipher, uint8_t *data, uint64_t sector, uint64_t length
) noexcept nogil:
    return run(cipher.decrypting, data, sector, length)


cdef class Cipher:
    """The same for Python (see cipher.pyi)."""

    cdef cipher_t cipher

    def __init__(self, Key key):
        cipher_use(&self.cipher, key)

    def encrypt(self, sector, data):
        return self._run(sector, data, True)

    def decrypt(self, sector, data):
        return self._run(sector, data, False)

    cdef bytes _run(self, uint64_t sector, data, bint encrypt):
        cdef bytearray copy = bytearray(data)
        cdef uint8_t *start = copy
        cdef uint64_t length = len(copy)
        cdef bint done
        if length % SECTOR_SIZE:
            raise ValueError(f"{length} bytes are no whole sectors")
        with nogil:
            if encrypt:
                done = cipher_encrypt(&self.cipher, start, sector, length)
            else:
                done = cipher_decrypt(&self.cipher, start, sector, length)
        if not done:
            raise OSError(5, "libcrypto failed")
        return bytes(copy)

    def __dealloc__(self):
        cipher_forget(&self.cipher)
