"""The PCI function around the controller: configuration space, capabilities, BARs, resets.

==============  =================================================================================
capabilities    the capability list: what is in it, which of its bits can be written
config_space    a view on the 4096 bytes in the controller's state, with its write masks
bars            BAR0 (registers and doorbells) and BAR4 (MSI-X table and PBA)
function        the function: what a configuration write means, function-level reset
==============  =================================================================================
"""
