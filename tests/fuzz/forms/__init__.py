"""Changes of inputs that leave them what they are: files of their format, or nearly."""

#: Longer inputs find nothing new and are slow.
INPUT_BYTES = 4096
