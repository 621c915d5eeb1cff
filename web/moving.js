// What moves on the nodes: the sampler's preview as a loop, and the saved video, which begins to play by itself.
import { api } from "../../scripts/api.js";
import { app } from "../../scripts/app.js";

const NAME = "I2VTensorRT.Moving";
const SAMPLER = "I2VTRT_DDIMSampler";
const STILL = window.matchMedia("(prefers-reduced-motion: reduce)").matches;

// By node id: how a sampler of the prompt that runs divides its preview, as it says before the first one.
const sheets = new Map();

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

// Ids count anew in every workflow, and what the server says names the one that it runs.
function sheetOf({ displayNodeId, jobId, promptId }) {
  const sheet = sheets.get(String(displayNodeId));
  const open = (app.rootGraph ?? app.graph)?.id;
  const prompt = jobId ?? promptId; // pages call it the one or the other
  if (!sheet || (prompt && sheet.prompt_id !== prompt)) return undefined;
  return sheet.workflow && sheet.workflow !== open ? undefined : sheet;
}

// The page itself would show the whole sheet as one picture on its canvas.
function hideSheet(node) {
  const { onDrawBackground } = node;
  node.onDrawBackground = function (...given) {
    if (!this.i2vSheet) onDrawBackground?.apply(this, given);
  };
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
  const isNew = node.i2vSheet !== sheet;
  node.i2vSheet = sheet;
  const picture = new Image();
  picture.src = URL.createObjectURL(blob);
  await picture.decode();
  const frame = (node.i2vLoop ??= addLoop(node));
  const shape = picture.width / sheet.columns / (picture.height / sheet.rows);
  frame.style.cssText = `width: min(100cqw, ${shape} * 100cqh); aspect-ratio: ${shape}; margin: auto;`
    + `background: url(${picture.src}) 0 0 / ${100 * sheet.columns}% ${100 * sheet.rows}%`;
  URL.revokeObjectURL(node.i2vPicture?.src);
  node.i2vPicture = picture;
  if (!isNew || STILL) return;
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
    node.setDirtyCanvas?.(true, true); // the page has made room for it, and draws the node in its old size
  } else if (patience) setTimeout(play, 200, node, patience - 1);
}

const extension = {
  name: NAME,

  init() {
    api.addEventListener("i2v_tensorrt.sheet", ({ detail }) => {
      for (const [id, { prompt_id }] of sheets) if (prompt_id !== detail.prompt_id) sheets.delete(id);
      sheets.set(String(detail.node), detail);
    });
    api.addEventListener("b_preview_with_metadata", ({ detail }) => {
      const sheet = sheetOf(detail);
      const node = sheet && find(detail.displayNodeId);
      // Where nodes are drawn as HTML the page shows the sheet and cannot be kept from it.
      if (node?.comfyClass !== SAMPLER || !node.addDOMWidget || window.LiteGraph?.vueNodesMode) return;
      show(node, sheet, detail.blob).catch(() => {}); // the next one may be whole
    });
  },

  nodeCreated(node) {
    if (node.comfyClass === SAMPLER) hideSheet(node);
    if (STILL || node.comfyClass !== "I2VTRT_SaveVideo") return;
    const { onExecuted } = node;
    node.onExecuted = function (...given) {
      onExecuted?.apply(this, given);
      play(this);
    };
  },
};

// A second copy of the pack brings the same script.
if (!app.extensions?.some(({ name }) => name === NAME)) app.registerExtension(extension);
