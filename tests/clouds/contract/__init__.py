"""What a Nova-compatible cloud does, asked of the rehearsal cloud and, unchanged, of a real one (`make acceptance`)."""
