#!/usr/bin/env python3
"""A second reader of the .hpatch format, written from docs/FORMAT.md alone.

Prints one JSON object: the identity of the patch and its function records. It checks the digest and
the structure, not every rule of the format; its purpose is to show that the description is enough.

Usage: read_hpatch.py FILE
"""

import hashlib
import json
import struct
import sys

DIGEST = slice(84, 116)
SIGNATURE = slice(136, 212)  # algorithm, key ID, signature, padding
VERSION = 232


class Refused(Exception):
    pass


def need(ok, what):
    if not ok:
        raise Refused(what)


def signer(data):
    """Who is named as the signer; checking the signature needs Ed25519, which Python does not bring."""
    algorithm, key, _, padding = unpack("<2sQ64sH", data, SIGNATURE.start)
    need(algorithm in (b"ED", b"\0\0") and padding == 0, "odd signature")
    return f"{key:016X}" if algorithm == b"ED" else None


def unpack(form, data, offset=0):
    need(0 <= offset and offset + struct.calcsize(form) <= len(data), "cut off")
    return struct.unpack_from(form, data, offset)


def text(table, offset):
    need(offset < len(table), "name outside its table")
    return table[offset : table.index(b"\0", offset)].decode()


def check_start(data):
    need(data[:7] == b"\x7fELF\x02\x01\x01", "not a 64-bit little-endian ELF file")
    need(unpack("<III8s", data, 64) == (7, 32, 2, b"hpatch\0\0"), "no digest note")
    digest = hashlib.sha256(data[: DIGEST.start] + bytes(32) + data[DIGEST.stop :]).digest()
    need(digest == data[DIGEST], "the digest does not match")
    need(unpack("<III8s", data, 116) == (7, 76, 3, b"hpatch\0\0"), "no signature note")
    major, minor = unpack("<HH", data, VERSION)
    need(major == 1, f"format version {major}.{minor}")
    need(unpack("<HH", data, 16) == (1, 62), "not a relocatable object for x86-64")


def sections(data):
    """Name -> (number, content, size, flags, link, info)."""
    (table,) = unpack("<Q", data, 40)
    entry, count, names = unpack("<HHH", data, 58)
    need(entry == 64 and names == count - 1, "odd section header table")
    need(table + 64 * count == len(data), "the file does not end with its section headers")
    headers = [unpack("<IIQQQQIIQQ", data, table + 64 * i) for i in range(count)]
    strings = data[headers[names][4] :][: headers[names][5]]
    found = {}
    for number, (name, kind, flags, _, offset, size, link, info, _, _) in enumerate(headers):
        need(kind == 8 or offset + size <= table, "section outside the file")
        content = b"" if kind == 8 else data[offset : offset + size]
        found[text(strings, name)] = (number, content, size, flags, link, info)
    for name in (".note.hpatch", ".hpatch.base", ".hpatch.functions", ".hpatch.manifest", ".symtab", ".strtab"):
        need(name in found, f"no section {name}")
    return found


def identity(note):
    need(unpack("<I", note)[0] == 7 and note[12:20] == b"hpatch\0\0", "odd identity note")
    _, _, machine, flags, counter, id_size, name_size = unpack("<HHHHQII", note, 20)
    need(machine == 62 and flags in (0, 1), "unknown machine or flags")
    build_id = note[44 : 44 + id_size]
    name = note[44 + id_size : 44 + id_size + name_size]
    need(len(build_id) == id_size and len(name) == name_size, "identity cut off")
    return {"name": name.decode(), "build_id": build_id.hex(), "counter": counter}


def symbols(found):
    table, strings = found[".symtab"][1], found[".strtab"][1]
    need(len(table) % 24 == 0, "odd symbol table")
    return [
        {"name": text(strings, name), "info": info, "section": section, "value": value, "size": size}
        for name, info, _, section, value, size in struct.iter_unpack("<IBBHQQ", table)
    ]


def relocations(found, symbol_count):
    count = 0
    for name, (_, content, _, _, _, _) in found.items():
        if name.startswith(".rela"):
            need(len(content) % 24 == 0, f"odd size of {name}")
            for offset, info, _ in struct.iter_unpack("<QQq", content):
                need(0 < info >> 32 < symbol_count, "relocation without a symbol")
                need(info & 0xFFFFFFFF in (1, 2, 4, 9, 10, 11, 24), "unknown relocation type")
                need(offset < found[name[5:]][2], "relocation outside its section")
                count += 1
    return count


def functions(found, symbol_list):
    content = found[".hpatch.functions"][1]
    size, count = unpack("<II", content)
    need(size == 72 and len(content) == 8 + 72 * count, "odd function table")
    records = []
    for i in range(count):
        address, old_size, digest, new, _, parent, role = unpack("<QQ32sIIIB", content, 8 + 72 * i)
        (flags,) = unpack("<B", content, 8 + 72 * i + 69)
        need(role in (0, 1) and (role == 0 or parent < count), "odd function record")
        need(flags in (0, 1 - role), "odd flags of a function record")
        need(new < len(symbol_list), "function without a symbol")
        records.append(
            {
                "role": ("entry", "fragment")[role],
                "name": symbol_list[new]["name"] if role == 0 else "",
                "old_address": address,
                "old_size": old_size,
                "digest": digest.hex(),
                "may_go_on": flags == 1,
            }
        )
    return records


def read(data):
    check_start(data)
    found = sections(data)
    result = identity(found[".note.hpatch"][1])
    result["signed_by"] = signer(data)
    table = symbols(found)
    result["symbols"] = len(table) - 1
    result["relocations"] = relocations(found, len(table))
    result["functions"] = functions(found, table)
    return result


def main():
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    with open(sys.argv[1], "rb") as file:
        data = file.read()
    try:
        print(json.dumps(read(data), ensure_ascii=False))
    except (Refused, ValueError) as error:
        sys.exit(f"{sys.argv[1]}: {error}")


if __name__ == "__main__":
    main()
