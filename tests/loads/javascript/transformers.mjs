// Embeddings by transformers.js, with dtype "q8": node transformers.mjs BUNDLES SENTENCES.json
import { readFileSync } from "node:fs";
import { env, pipeline } from "@huggingface/transformers";

const [bundles, sentences] = process.argv.slice(2);
env.allowRemoteModels = false;
env.localModelPath = bundles;
const embed = await pipeline("feature-extraction", "transformers-js", { dtype: "q8" });
const texts = JSON.parse(readFileSync(sentences, "utf-8"));
const found = await embed(texts, { pooling: "mean", normalize: true });
process.stdout.write(JSON.stringify(found.tolist()));
