"""Container images made here, without a registry: debootstrap for the base, umoci for the layers."""
