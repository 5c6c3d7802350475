// Opens GGUF files in llama.cpp, through node-llama-cpp, as an independent check.
//
// usage: node judge_gguf.mjs FOLDER < jobs.json       FOLDER/node_modules holds node-llama-cpp
//
// The last line of the output is the list of answers. Jobs and their answers:
//
//   {"file", "greedy": token ids, "count"}
//       the next `count` tokens, greedily
//   {"file", "texts"}
//       the token ids of each text, without BOS and EOS, with special tokens parsed
//   {"file", "texts", "around": vocabulary}
//       {"ids", "front", "behind", "ends"}, or null if llama.cpp does not open the file. `ids` is as above. `front` and
//       `behind` are the BOS and EOS that a prompt gets, or null. `ends` are all end-of-generation tokens.
//
// `vocabulary` is the number of tokens.

import {createRequire} from "node:module";
import {readFileSync} from "node:fs";
import {join, resolve} from "node:path";
import {pathToFileURL} from "node:url";

const require = createRequire(join(resolve(process.argv[2]), "package.json"));
const {getLlama, LlamaLogLevel} = await import(pathToFileURL(require.resolve("node-llama-cpp")).href);

const llama = await getLlama({gpu: false, build: "never", skipDownload: true, logLevel: LlamaLogLevel.error});
const answers = [];
for (const job of JSON.parse(readFileSync(0, "utf8"))) {
    const options = {modelPath: job.file, vocabOnly: job.texts != null, gpuLayers: 0};
    const model = await llama.loadModel(options).catch((error) => {
        if (job.around == null) throw error;
    });
    if (model == null) {
        answers.push(null);
        continue;
    }
    if (job.texts != null) {
        const ids = job.texts.map((text) => [...model.tokenize(text, true)]);
        const {bos, eos, shouldPrependBosToken, shouldAppendEosToken} = model.tokens;
        answers.push(job.around == null ? ids : {
            ids,
            front: shouldPrependBosToken ? bos : null,
            behind: shouldAppendEosToken ? eos : null,
            ends: Array.from({length: job.around}, (_, id) => id).filter((id) => model.isEogToken(id))
        });
    } else {
        const context = await model.createContext({contextSize: job.greedy.length + job.count + 8, threads: 1});
        const sequence = context.getSequence();
        const tokens = [];
        for await (const token of sequence.evaluate(job.greedy, {temperature: 0, yieldEogToken: true})) {
            tokens.push(token);
            if (tokens.length === job.count) break;
        }
        answers.push(tokens);
        await context.dispose();
    }
    await model.dispose();
}
process.stdout.write("\n" + JSON.stringify(answers) + "\n");
process.exit(0);
