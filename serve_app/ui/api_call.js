// A request as a call to type: curl for a shell, httpx for Python. Pure text.

const WAIT_S = 60;

/** The file that holds a picture of the request. */
export class FileName {
  constructor(name) {
    this.name = name;
  }
}

/**
 * @param {object} body of POST /generate, with a FileName in place of each picture
 * @param {string} url of POST /generate
 * @param {boolean} keyed whether the service asks for a key
 */
export function curl(body, url, keyed) {
  const files = [];
  let mark = "FILE";
  while (JSON.stringify(body).includes(mark)) mark += "_"; // no text of the request is taken for it
  const marked = (_, value) => (value instanceof FileName ? `${mark}${files.push(value.name) - 1}` : value);
  let text = JSON.stringify(body, marked, 2);
  const pictured = files.length > 0;
  if (pictured) {
    text = text.replace(/[\\$`]/g, "\\$&"); // the shell reads this text, so that it can put the files in
    text = text.replace(new RegExp(`"${mark}(\\d+)"`, "g"), (_, at) => `"$(base64 < ${quoted(files[at])} | tr -d '\\n')"`);
  }
  const lines = [`curl -s ${quoted(url)}`, "  -H 'Content-Type: application/json'", `  -H 'Prefer: wait=${WAIT_S}'`];
  if (keyed) lines.push('  -H "Authorization: Bearer $DARKROOM_KEY"');
  lines.push(`  --data-binary @- <<${pictured ? "JSON" : "'JSON'"}`);
  return `${lines.join(" \\\n")}\n${text}\nJSON\n`;
}

/** The same for Python. */
export function python(body, url, keyed) {
  const entries = Object.entries(body).map(([field, value]) => `    ${JSON.stringify(field)}: ${literal(value)},\n`);
  const pictured = holdsFile(body);
  const imports = [...(pictured ? ["base64"] : []), ...(keyed ? ["os"] : []), ...(pictured ? ["pathlib"] : [])];
  const reads = 'def file(path):\n    return base64.b64encode(pathlib.Path(path).read_bytes()).decode()\n\n\n';
  return [
    ...imports.map((name) => `import ${name}\n`),
    imports.length ? "\n" : "",
    `import httpx\n\n${pictured ? `\n${reads}` : ""}`,
    `headers = {"Prefer": "wait=${WAIT_S}"}\n`,
    keyed ? 'headers["Authorization"] = "Bearer " + os.environ["DARKROOM_KEY"]\n' : "",
    `request = {\n${entries.join("")}}\n`,
    `answer = httpx.post(${JSON.stringify(url)}, json=request, headers=headers, timeout=${WAIT_S + 30})\n`,
    "answer.raise_for_status()\n",
    "print(answer.json())\n",
  ].join("");
}

function literal(value) {
  if (value === true) return "True";
  if (value === false) return "False";
  if (value === null) return "None";
  if (value instanceof FileName) return `file(${JSON.stringify(value.name)})`;
  if (Array.isArray(value)) return `[${value.map(literal).join(", ")}]`;
  if (typeof value === "object") {
    return `{${Object.entries(value).map(([key, one]) => `${JSON.stringify(key)}: ${literal(one)}`).join(", ")}}`;
  }
  return JSON.stringify(value);
}

const holdsFile = (value) =>
  value instanceof FileName || (typeof value === "object" && value !== null && Object.values(value).some(holdsFile));

const quoted = (text) => (/^[\w./:@-]+$/.test(text) ? text : `'${text.replaceAll("'", "'\\''")}'`);
