// Runs the script of PyTorch's memory viewer (MemoryViz.js) on a snapshot without a browser, and prints as JSON what
// its views show.
//
//     node memory_viewer.mjs MemoryViz.js snapshot.pickle
//
// The script draws with d3, which it imports from the network. Here each d3 function is `anything`: it can be called,
// read and written in any way. So everything of the viewer runs but the drawing itself.

import fs from 'node:fs';
import os from 'node:os';
import path from 'node:path';

const anything = new Proxy(function () {}, {
  get: (_target, key) => (key === Symbol.toPrimitive ? () => 0 : anything),
  apply: () => anything,
  construct: () => anything,
  set: () => true,
});
globalThis.anything = anything;
globalThis.window = {requestAnimationFrame: callback => callback()};
globalThis.document = anything;
const log = console.log;
console.log = () => {}; // the viewer logs the whole snapshot

const [viewerPath, snapshotPath] = process.argv.slice(2);
const names = ['unpickle_and_annotate', 'process_alloc_data', 'create_trace_view', 'create_segment_view', 'kinds'];
const script = fs
  .readFileSync(viewerPath, 'utf8')
  .replace(/^import \* as (\w+) from .*$/gm, 'const $1 = anything;')
  .replace(/^import (\{.*\}) from .*$/gm, 'const $1 = anything;');
const folder = fs.mkdtempSync(path.join(os.tmpdir(), 'memory_viewer-'));
const copy = path.join(folder, 'MemoryViz.mjs');
fs.writeFileSync(copy, `${script}\nexport {${names.join(', ')}};\n`);
const viewer = await import(copy);
fs.rmSync(folder, {recursive: true});

const file = fs.readFileSync(snapshotPath);
const snapshot = viewer.unpickle_and_annotate(file.buffer.slice(file.byteOffset, file.byteOffset + file.length));
const devices = [];
for (const device of snapshot.device_traces.keys()) {
  for (const draw of Object.values(viewer.kinds)) {
    draw(anything, snapshot, device); // throws where the page would stay blank
  }
  const data = viewer.process_alloc_data(snapshot, device, false, 15000);
  devices.push({
    peak_bytes: data.max_size,
    elements: data.elements_length,
    colors: data.allocations_over_time.map(each => each.color),
    first_text: data.elements_length ? data.context_for_id(0) : '',
  });
}
log(JSON.stringify({categories: snapshot.categories, devices}));
