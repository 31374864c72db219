"""Where money is written down."""
