"""What every backend can be asked."""

from collections.abc import Mapping

from nvme_mdev.datapath.backends.drive import Atomicity, CommandLimits, CopyLimits
from nvme_mdev.datapath.backends.raw import NoMedium, RawMedium
from nvme_mdev.datapath.limits import Limit
from nvme_mdev.datapath.memory import GuestMemory

class Backend:
    """A place where a namespace's blocks live. Sizes and capabilities come from it."""

    #: What a person would call it: the path, or null:SIZE, memory:SIZE.
    name: str
    #: Identity that is the same at the next start, for UUID/NGUID; "" where there is none.
    identity: str
    #: Capacity in bytes, a multiple of block_size.
    size: int
    #: Logical block size in bytes: 512 or 4096.
    block_size: int
    read_only: bool
    #: Writes are volatile until flushed (VWC).
    volatile_cache: bool
    #: Compare can be done.
    can_compare: bool
    #: What it cannot do itself is made of reads and writes (Compare, Verify, Copy), of any memory
    #: of this process, in pieces of any length, or of marks of ours (Write Uncorrectable). Not for
    #: a drive's namespace: its guest is told what the drive can, and gets the drive's statuses.
    emulates: bool
    #: How it takes SGLs (`Sgls`): their alignment, 0 for not at all, and bit buckets.
    sgls: int
    #: Write Zeroes, Dataset Management/deallocate and FUA can be done.
    can_write_zeroes: bool
    can_deallocate: bool
    #: Verify and Copy can be done, and what a Copy may be at most (None: what we do ourselves).
    can_verify: bool
    #: Blocks can be made unreadable, by the drive or by marks that we keep.
    can_write_uncorrectable: bool
    can_copy: bool
    copy_limits: CopyLimits | None
    #: Of commands without data; what we do ourselves has no limits.
    command_limits: CommandLimits
    #: Deallocated blocks read as zeroes (DLFEAT 001b), else unspecified.
    deallocate_zeroes: bool
    #: Blocks; 0 where the backend has no preference (NOIOB; NPWG, NPDG as counts, not 0's based).
    optimal_io_boundary: int
    preferred_write_granularity: int
    preferred_deallocate_granularity: int

    #: What is written whole or not at all; None: a block.
    atomicity: Atomicity | None
    #: Where its reservations are kept through a loss of power (PTPL); None: nowhere.
    ptpl_file: str | None

    #: IOThreads that it is served on: with more than one, fused commands are not atomic.
    threads: int
    #: Bytes that one command can move at most; 0: as many as you like.
    transfer_limit: int

    #: By name (`nvme_mdev.datapath.limits`): how much it does a second, for everybody together.
    limits: dict[str, Limit]

    def set_limits(self, limits: Mapping[str, Limit]) -> None:
        """Have these limits from now on, and no others, beginning with full buckets.

        ValueError: there is no such limit, or it cannot be had.
        """

    def use_memory(self, memory: GuestMemory) -> None:
        """It will be asked to move data to and from this memory: make that possible.

        OSError: it is not.
        """

    def leave_memory(self, memory: GuestMemory) -> None:
        """No command will touch this memory any more."""

    def medium_size(self) -> int:
        """Bytes that the medium has now, in whole blocks: others may have changed it.

        0 where less than a block is left. OSError: it cannot be asked, it is gone.
        """

    def medium_read_only(self) -> bool:
        """Whether the medium cannot be written to now (OSError: it cannot be asked, it is gone)."""

    def change_medium(self, size: int) -> None:
        """Make the medium itself larger or smaller, in bytes.

        What is served stays as it is (`NamespaceTable.resize`). OSError: as the kernel says,
        ENOTSUP where only others can change it (a block device).
        """

    def flush(self) -> None:
        """Block until everything that was written is durable (OSError: it may not be).

        From any thread, while IOThreads go on; releases the GIL. For shutdown and for turning the
        volatile write cache off; the guest's Flush does not come here.
        """

    def temperature(self) -> int | None:
        """Kelvin, of the medium; None: it has no sensor. From any thread; may take its time."""

    def smart(self) -> bytes | None:
        """The SMART log (512 bytes) of the drive that it is on; None: there is none.

        From any thread; may take its time. OSError: the drive does not tell.
        """

    def raw(self) -> RawMedium | NoMedium | None:
        """The bytes underneath, for maintenance; None where that cannot be."""

    #: Its data is encrypted on the medium: another key erases it.
    encrypted: bool

    def new_key(self) -> object:
        """Make a key, and put it in the place of the old one; the guest sends nothing meanwhile.

        From any thread; blocks. OSError: nothing has changed, or there is no key (ENOTSUP).
        """

    def use_key(self, key: object) -> None:
        """Encrypt and decrypt with what `new_key` gave, on every IOThread; nothing is in flight."""

    def forget_old_key(self) -> None:
        """Make sure that nobody can read the old one. As `new_key`; OSError: they may still."""

    def can_have_blocks(self, block_size: int) -> bool:
        """Whether `format` can give it blocks of so many bytes."""

    def format(self, block_size: int) -> None:
        """Serve blocks of another size; nothing else about the medium changes."""

    def close(self) -> None: ...
