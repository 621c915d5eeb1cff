// What moves on the nodes: the sampler's preview as a loop, and the saved video, which begins to play by itself.
import { api } from "../../scripts/api.js";
import { app } from "../../scripts/app.js";

const STILL = window.matchMedia("(prefers-reduced-motion: reduce)").matches;

const sheets = new WeakMap(); // by node: how the sampler divides its preview, as it says before the first one

// By an id as the server gives it: that of a node inside a subgraph names the outer nodes first.
function find(id) {
  return String(id).split(":").reduce((at, part) => (at?.subgraph ?? at)?.getNodeById?.(part), app.graph);
}

// The frames' places on the sheet one after the other, each until the next.
function steps({ columns, rows, frames }) {
  const percent = (place, places) => (places > 1 ? (100 * place) / (places - 1) : 0);
  return Array.from({ length: frames }, (_, n) => ({
    backgroundPosition: `${percent(n % columns, columns)}% ${percent(Math.floor(n / columns), rows)}%`,
    easing: "steps(1, end)",
    offset: n / frames,
  }));
}

// The page itself would show the whole sheet as one picture on its canvas.
function hideSheet(node) {
  node.onDrawBackground = () => {};
}

function addLoop(node) {
  const frame = document.createElement("div");
  frame.className = "i2v-loop";
  const holder = document.createElement("div");
  holder.style.cssText =
    "width: 100%; height: 100%; min-height: 120px; container-type: size; display: flex; pointer-events: none";
  holder.append(frame);
  const widget = node.addDOMWidget("i2v-loop", "i2v-loop", holder, { serialize: false, hideOnZoom: false });
  widget.serialize = false;
  widget.computeLayoutSize = () => ({ minWidth: 100, minHeight: 160 });
  return frame;
}

async function show(node, sheet, blob) {
  const picture = new Image();
  picture.src = URL.createObjectURL(blob);
  await picture.decode();
  const frame = (node.i2vLoop ??= addLoop(node));
  const shape = picture.width / sheet.columns / (picture.height / sheet.rows);
  frame.style.cssText = `width: min(100cqw, ${shape} * 100cqh); aspect-ratio: ${shape}; margin: auto;`
    + `background: url(${picture.src}) 0 0 / ${100 * sheet.columns}% ${100 * sheet.rows}%`;
  URL.revokeObjectURL(node.i2vPicture?.src);
  node.i2vPicture = picture;
  if (node.i2vSheet === sheet || STILL) return;
  node.i2vSheet = sheet;
  frame.getAnimations().forEach((animation) => animation.cancel());
  const last = steps(sheet);
  frame.animate([...last, { ...last.at(-1), offset: 1 }], { duration: 1000 * sheet.seconds, iterations: Infinity });
}

// The page makes the player some time after it has the file's name.
function play(node, patience = 50) {
  const place = node.videoContainer ?? document.querySelector(`[data-node-id="${node.id}"]`);
  const video = place?.querySelector("video");
  if (video?.readyState >= 2 && video.i2vPlayed !== video.currentSrc) {
    video.i2vPlayed = video.currentSrc;
    video.muted = true; // or the browser may refuse
    video.play().catch(() => {}); // the controls are there
  } else if (patience) setTimeout(play, 200, node, patience - 1);
}

app.registerExtension({
  name: "I2VTensorRT.Moving",

  init() {
    api.addEventListener("i2v_tensorrt.sheet", ({ detail }) => {
      const node = find(detail.node);
      // Where nodes are drawn as HTML the page shows the sheet and cannot be kept from it.
      if (!node?.addDOMWidget || window.LiteGraph?.vueNodesMode) return;
      hideSheet(node);
      sheets.set(node, detail);
    });
    api.addEventListener("b_preview_with_metadata", ({ detail }) => {
      const node = find(detail.displayNodeId);
      if (sheets.has(node)) show(node, sheets.get(node), detail.blob).catch(() => {}); // the next one may be whole
    });
  },

  nodeCreated(node) {
    if (STILL || node.comfyClass !== "I2VTRT_SaveVideo") return;
    const { onExecuted } = node;
    node.onExecuted = function (...given) {
      onExecuted?.apply(this, given);
      play(this);
    };
  },
});
