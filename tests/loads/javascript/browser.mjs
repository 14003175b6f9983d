// The first output of a model in onnxruntime-web, in headless Chromium:
// node browser.mjs CHROMIUM MODEL CASE.json
//
// A server on the loopback address gives the page what it needs; the page posts what it found.
import { spawn } from "node:child_process";
import { mkdtempSync, readFileSync, rmSync } from "node:fs";
import { createServer } from "node:http";
import { tmpdir } from "node:os";
import { dirname, extname, join } from "node:path";
import { fileURLToPath } from "node:url";

const [chromium, model, path] = process.argv.slice(2);
const library = join(dirname(fileURLToPath(import.meta.url)), "node_modules/onnxruntime-web/dist");
const page = `<script type="module">
  const post = (body) => fetch("/found", { method: "POST", body: JSON.stringify(body) });
  try {
    const ort = await import("/library/ort.wasm.min.mjs");
    ort.env.wasm.numThreads = 1;
    ort.env.wasm.wasmPaths = "/library/";
    const session = await ort.InferenceSession.create("/model.onnx", { executionProviders: ["wasm"] });
    const feeds = {};
    for (const [name, { dims, data }] of Object.entries(await (await fetch("/case.json")).json())) {
      feeds[name] = new ort.Tensor("int64", BigInt64Array.from(data.map(BigInt)), dims);
    }
    const found = await session.run(feeds);
    await post(Array.from(found[session.outputNames[0]].data));
  } catch (error) {
    await post({ error: String(error) });
  }
</script>`;
const types = { ".mjs": "text/javascript", ".js": "text/javascript", ".wasm": "application/wasm" };

const profile = mkdtempSync(join(tmpdir(), "chromium-"));
const done = (code) => {
  browser.once("exit", () => {
    // Its children may still write for a moment.
    rmSync(profile, { recursive: true, force: true, maxRetries: 20, retryDelay: 100 });
    process.exit(code);
  });
  browser.kill();
};
const server = createServer((request, response) => {
  if (request.method === "POST") {
    let body = "";
    request.on("data", (chunk) => (body += chunk));
    request.on("end", () => {
      response.end();
      const found = JSON.parse(body);
      if (found.error) {
        process.stderr.write(found.error);
        done(1);
      }
      process.stdout.write(body, () => done(0));
    });
    return;
  }
  const files = { "/model.onnx": model, "/case.json": path };
  const name = request.url.startsWith("/library/")
    ? join(library, request.url.slice("/library/".length))
    : files[request.url];
  if (request.url === "/") {
    response.setHeader("Content-Type", "text/html").end(page);
  } else if (name) {
    response.setHeader("Content-Type", types[extname(name)] ?? "application/octet-stream");
    response.end(readFileSync(name));
  } else {
    response.writeHead(404).end();
  }
});
let browser;
server.listen(0, "127.0.0.1", () => {
  const address = `http://127.0.0.1:${server.address().port}/`;
  const options = ["--headless=new", "--no-sandbox", "--disable-gpu", `--user-data-dir=${profile}`];
  browser = spawn(chromium, [...options, address], { stdio: "ignore" });
});
setTimeout(() => {
  process.stderr.write("the browser said nothing for four minutes");
  done(1);
}, 240000);
