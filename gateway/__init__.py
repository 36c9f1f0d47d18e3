"""The gateway. Importing it makes the compiled form of the data plane known, where there is one: see `gateway.native`."""

from gateway import native

native.install()
