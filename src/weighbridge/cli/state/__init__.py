"""`weighbridge state`: files that outlive a process, copied, checked and brought to this version."""
