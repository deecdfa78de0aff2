"""What the kernel's tests share: a recording tree, and children that do as they are told."""
