// A request as a call to type: curl for a shell, httpx for Python. Pure text.

const WAIT_S = 60;

/**
 * @param {object} body of POST /generate; image and mask as data URLs
 * @param {string} url of POST /generate
 * @param {Record<string, string>} files names of the files that hold the body's image and mask
 * @param {boolean} keyed whether the service asks for a key
 */
export function curl(body, url, files, keyed) {
  const pictured = "image" in body;
  let text = JSON.stringify({ ...body, ...files }, null, 2);
  if (pictured) {
    text = text.replace(/[\\$`]/g, "\\$&"); // the shell reads this text, so that it can put the files in
    for (const [field, file] of Object.entries(files)) {
      const name = JSON.stringify(file).replace(/[\\$`]/g, "\\$&");
      text = text.replace(`"${field}": ${name}`, () => `"${field}": "$(base64 < ${quoted(file)} | tr -d '\\n')"`);
    }
  }
  const lines = [`curl -s ${quoted(url)}`, "  -H 'Content-Type: application/json'", `  -H 'Prefer: wait=${WAIT_S}'`];
  if (keyed) lines.push('  -H "Authorization: Bearer $DARKROOM_KEY"');
  lines.push(`  --data-binary @- <<${pictured ? "JSON" : "'JSON'"}`);
  return `${lines.join(" \\\n")}\n${text}\nJSON\n`;
}

/** The same for Python. */
export function python(body, url, files, keyed) {
  const entries = Object.entries(body).map(([field, value]) => {
    const file = files[field];
    return `    ${JSON.stringify(field)}: ${file ? `file(${JSON.stringify(file)})` : literal(value)},\n`;
  });
  const pictured = "image" in body;
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
  if (Array.isArray(value)) return `[${value.map(literal).join(", ")}]`;
  if (typeof value === "object") {
    return `{${Object.entries(value).map(([key, one]) => `${JSON.stringify(key)}: ${literal(one)}`).join(", ")}}`;
  }
  return JSON.stringify(value);
}

const quoted = (text) => (/^[\w./:@-]+$/.test(text) ? text : `'${text.replaceAll("'", "'\\''")}'`);
