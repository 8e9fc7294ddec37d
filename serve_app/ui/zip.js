// Files as a ZIP archive, stored as they are: pictures don't get smaller. Pure. (PKWARE, APPNOTE.TXT 6.3.10)

const LOCAL = 0x04034b50;
const CENTRAL = 0x02014b50;
const END = 0x06054b50;
const VERSION = 20;
const UTF_8 = 1 << 11;
const DAY = 0x0021; // 1 January 1980, the format's first

const CRC = Uint32Array.from({ length: 256 }, (_, byte) => {
  let value = byte;
  for (let bit = 0; bit < 8; bit += 1) value = value & 1 ? (value >>> 1) ^ 0xedb88320 : value >>> 1;
  return value;
});

/** The archive as a Blob. files: [{name, bytes}], bytes being a Uint8Array; together less than 4 GiB. */
export function zipped(files) {
  const parts = [];
  const directory = [];
  let offset = 0;
  for (const { name, bytes } of files) {
    const title = new TextEncoder().encode(name);
    const about = [crc(bytes), bytes.length, bytes.length, title.length];
    const local = packed("IHHHHHIIIHH", [LOCAL, VERSION, UTF_8, 0, 0, DAY, ...about, 0]);
    directory.push(packed("IHHHHHHIIIHHHHHII", [CENTRAL, VERSION, VERSION, UTF_8, 0, 0, DAY, ...about, 0, 0, 0, 0, 0, offset]), title);
    parts.push(local, title, bytes);
    offset += local.length + title.length + bytes.length;
  }
  const size = directory.reduce((sum, part) => sum + part.length, 0);
  const end = packed("IHHHHIIH", [END, 0, 0, files.length, files.length, size, offset, 0]);
  return new Blob([...parts, ...directory, end], { type: "application/zip" });
}

function crc(bytes) {
  let value = 0xffffffff;
  for (const byte of bytes) value = CRC[(value ^ byte) & 0xff] ^ (value >>> 8);
  return (value ^ 0xffffffff) >>> 0;
}

// numbers as little-endian bytes; H: two of them, I: four
function packed(form, numbers) {
  const view = new DataView(new ArrayBuffer([...form].reduce((size, letter) => size + (letter === "I" ? 4 : 2), 0)));
  let at = 0;
  for (const [index, letter] of [...form].entries()) {
    if (letter === "I") view.setUint32(at, numbers[index], true);
    else view.setUint16(at, numbers[index], true);
    at += letter === "I" ? 4 : 2;
  }
  return new Uint8Array(view.buffer);
}
