"""A GenICam camera's registers behind GenApi's own node map: real features, limits and enumerations, no streaming."""

from __future__ import annotations

import struct
from typing import Any

ENUMS = {  # feature: (address, choices, the one at first)
    "PixelFormat": (0x00, ("Mono8", "BayerRG8", "Mono12p"), 0),
    "ExposureAuto": (0x04, ("Off", "Once", "Continuous"), 2),
    "TriggerSelector": (0x08, ("AcquisitionStart", "FrameStart"), 0),
    "TriggerMode": (0x0C, ("Off", "On"), 0),
    "TriggerSource": (0x10, ("Line1", "Line2", "Software"), 2),
}
INTEGERS = {"Width": (0x20, 640, 64, 1920, 8), "Height": (0x28, 480, 64, 1080, 2)}  # address, value, limits, step
FLOATS = {"ExposureTime": (0x40, 5000.0, 20.0, 100_000.0), "Gain": (0x48, 0.0, 0.0, 24.0)}


def description() -> str:
    features = [*ENUMS, *INTEGERS, *FLOATS]
    nodes = [
        "".join(f"<pFeature>{name}</pFeature>" for name in features).join(('<Category Name="Root">', "</Category>"))
    ]
    for name, (address, choices, _) in ENUMS.items():
        entries = "".join(
            f'<EnumEntry Name="{each}"><Value>{at}</Value></EnumEntry>' for at, each in enumerate(choices)
        )
        nodes.append(f'<Enumeration Name="{name}">{entries}<pValue>{name}Reg</pValue></Enumeration>')
        nodes.append(int_register(f"{name}Reg", address, 4))
    for name, (address, _, low, high, step) in INTEGERS.items():
        limits = f"<Min>{low}</Min><Max>{high}</Max><Inc>{step}</Inc>"
        nodes.append(f'<Integer Name="{name}"><pValue>{name}Reg</pValue>{limits}</Integer>')
        nodes.append(int_register(f"{name}Reg", address, 8))
    for name, (address, _, least, most) in FLOATS.items():
        nodes.append(f'<Float Name="{name}"><pValue>{name}Reg</pValue><Min>{least}</Min><Max>{most}</Max></Float>')
        nodes.append(
            f'<FloatReg Name="{name}Reg"><Address>{address}</Address><Length>8</Length><AccessMode>RW</AccessMode>'
            "<pPort>Device</pPort><Endianess>LittleEndian</Endianess></FloatReg>"
        )
    return (
        '<?xml version="1.0" encoding="utf-8"?><RegisterDescription ModelName="M" VendorName="V" ToolTip="" '
        'StandardNameSpace="None" SchemaMajorVersion="1" SchemaMinorVersion="1" SchemaSubMinorVersion="0" '
        'MajorVersion="1" MinorVersion="0" SubMinorVersion="0" ProductGuid="1F3C6A72-7842-4EDD-9130-E2E90A2058BA" '
        'VersionGuid="1F3C6A72-7842-4EDD-9130-E2E90A2058BB" xmlns="http://www.genicam.org/GenApi/Version_1_1">'
        + "".join(nodes)
        + '<Port Name="Device"/></RegisterDescription>'
    )


def int_register(name: str, address: int, length: int) -> str:
    return (
        f'<IntReg Name="{name}"><Address>{address}</Address><Length>{length}</Length><AccessMode>RW</AccessMode>'
        "<pPort>Device</pPort><Sign>Unsigned</Sign><Endianess>LittleEndian</Endianess></IntReg>"
    )


def camera() -> tuple[Any, Any]:
    """A node map and its port; ``port.plugged = False`` pulls the cable."""
    from genicam import genapi

    class Port(genapi.AbstractPort):  # type: ignore[misc,name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.memory = bytearray(0x100)
            self.plugged = True
            for address, _, first in ENUMS.values():
                struct.pack_into("<I", self.memory, address, first)
            for address, value, *_ in INTEGERS.values():
                struct.pack_into("<Q", self.memory, address, value)
            for address, number, *_ in FLOATS.values():
                struct.pack_into("<d", self.memory, address, number)

        def get_access_mode(self) -> int:
            return int(genapi.EAccessMode.RW)

        def read(self, address: int, length: int) -> bytes:
            if not self.plugged:
                raise OSError("the cable is out")
            return bytes(self.memory[address : address + length])

        def write(self, address: int, value: bytes) -> None:
            self.memory[address : address + len(value)] = value

    port, nodes = Port(), genapi.NodeMap()
    nodes.load_xml_from_string(description())
    nodes.connect(port, "Device")
    return nodes, port
