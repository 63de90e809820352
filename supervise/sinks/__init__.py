"""Where events go. One file each, imported only when used."""
