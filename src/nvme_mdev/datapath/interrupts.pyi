"""A controller's interrupts: eventfds, masks, and what is pending."""

class Interrupts:
    """MSI-X, MSI and the pin. Every method is called from the control plane's thread.

    ValueError: there is no such vector.
    """

    def set_vector(self, vector: int, fd: int | None, *, msi: bool = False) -> None:
        """The eventfd of a vector of MSI-X, or of MSI (the table owns it from now on, and closes
        it). It gets what is pending. Nobody uses both kinds."""

    def mask_vector(self, vector: int, masked: bool, *, by_table: bool = False) -> None:
        """Mask, or unmask and deliver what was pending. A vector is masked as long as the client
        (SET_IRQS), its entry in the MSI-X table (`by_table`), or the function mask says so."""

    def mask_function(self, masked: bool) -> None:
        """The function mask of MSI-X: all vectors."""

    def pending_vectors(self) -> list[int]:
        """Vectors with an interrupt that a mask has held back: the Pending Bit Array."""

    def forget_masks(self) -> None:
        """No vector is masked by anything but INTMS, none is pending (device reset)."""

    def set_intx(self, fd: int | None) -> None: ...
    def mask_intx(self, masked: bool) -> None:
        """Mask or unmask the pin, which its own delivery masks (VFIO_IRQ_INFO_AUTOMASKED).

        Unmasking asserts it again while a completion queue with interrupts enabled has entries
        that the guest has not consumed.
        """

    def set_intms(self, mask: int) -> None:
        """INTMS/INTMC changed (the register's value)."""

    def configure_coalescing(self) -> None:
        """Features 08h and 09h in the shared state changed: hold interrupts back as they say."""

    #: The pin is asserted: a completion queue with interrupts enabled has entries not consumed, and
    #: INTMS does not hold it back. What Status.INTx of PCI says.
    pin_level: bool

    def trigger(self, vector: int) -> None:
        """Signal a vector's eventfd (SET_IRQS with ACTION_TRIGGER); vector -1: INTx."""

    def clear(self) -> None:
        """Close every eventfd (the client went away, or the device was reset)."""

    def raise_for(self, cqid: int) -> None:
        """Send the interrupt of a CQ, if it has one."""
