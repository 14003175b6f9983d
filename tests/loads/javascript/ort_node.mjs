// The first output of a model in onnxruntime-node: node ort_node.mjs MODEL CASE.json
import { readFileSync } from "node:fs";
import ort from "onnxruntime-node";

const [model, path] = process.argv.slice(2);
const session = await ort.InferenceSession.create(model);
const feeds = {};
for (const [name, { dims, data }] of Object.entries(JSON.parse(readFileSync(path, "utf-8")))) {
  feeds[name] = new ort.Tensor("int64", BigInt64Array.from(data.map(BigInt)), dims);
}
const found = await session.run(feeds);
process.stdout.write(JSON.stringify(Array.from(found[session.outputNames[0]].data)));
