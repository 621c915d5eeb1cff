// What a node's schema cannot tell the page: a colour by the node's work, a first size, the choices of its lists in
// the user's language (the page itself translates names and tooltips, but no choices), that advanced inputs are folded
// away on its canvas too (the page itself folds them where nodes are drawn as HTML), and what nodes answer: tables, and
// texts in whole.
import { api } from "../../scripts/api.js";
import { app } from "../../scripts/app.js";

const NAME = "I2VTensorRT.Face";
const BLUE = "#263759";
const BROWN = "#54371f";
const PURPLE = "#48305c";
const GREEN = "#24492f";

// Of the title: blue opens and compiles models, brown says what to make, purple makes it, green shows it.
const FACE = { title: GREEN, width: 300 }; // of a node that is not listed
const FACES = {
  I2VTRT_ModelLoader: { title: BLUE, width: 300 },
  I2VTRT_LoRA: { title: BLUE, width: 300 },
  I2VTRT_EngineBuilder: { title: BLUE, width: 320 },
  I2VTRT_EngineLoader: { title: BLUE, width: 300 },
  I2VTRT_Conditioning: { title: BROWN, width: 400, height: 420 },
  I2VTRT_DDIMSampler: { title: PURPLE, width: 300 },
  I2VTRT_VAEDecode: { title: GREEN, width: 260 },
  I2VTRT_CompileModel: { title: BLUE, width: 320, height: 220 },
  I2VTRT_SaveVideo: { title: GREEN, width: 340 },
  I2VTRT_EngineDoctor: { title: BLUE, width: 480 },
  I2VTRT_EngineManager: { title: BLUE, width: 480 },
  I2VTRT_CompareVideos: { title: GREEN, width: 400 },
  I2VTRT_Benchmark: { title: GREEN, width: 480 },
};

const BOX = "overflow:auto;height:100%;user-select:text;font-size:11px;border-radius:4px;";
const CELL = "padding:2px 6px;text-align:left;vertical-align:top;border-bottom:1px solid var(--border-color,#555);";
const MOST_HEIGHT = 900;
const MARGIN = 40;

// What a node says while it works stands in a widget of the page's own, which has one height and cuts words anywhere.
const TEXT = "$$node-text-preview";
const TEXT_STYLE = "box-sizing:border-box;padding:8px 16px;font-size:12px;line-height:16px;word-break:break-all;"
  + "white-space:pre-wrap;";
const MOST_TEXT = 200;
const WIDGET_MARGIN = 10;

let translations = {};

function faceOf(node) {
  return node.comfyClass?.startsWith("I2VTRT_") ? FACES[node.comfyClass] ?? FACE : undefined;
}

function choices(nodeName, inputName) {
  const locale = setting("Comfy.Locale") ?? "en";
  return translations[locale]?.nodeDefs?.[nodeName]?.inputs?.[inputName]?.options;
}

// The first row is the heading. Text alone is written: it comes from a server, which need not be this one.
function tableOf(rows) {
  const table = document.createElement("table");
  table.style.cssText = "border-collapse:collapse;width:100%;color:var(--input-text,#ddd);";
  rows.forEach((cells, number) => {
    const row = table.insertRow();
    for (const text of cells) {
      const cell = document.createElement(number ? "td" : "th");
      cell.style.cssText = CELL;
      cell.textContent = text;
      row.append(cell);
    }
  });
  return table;
}

// As high as it needs at this width, so that nothing has to be scrolled unless it is very long.
function heightOf(content, width, style) {
  const box = document.createElement("div");
  box.style.cssText = `${style}position:absolute;visibility:hidden;width:${width}px;`;
  box.append(content);
  document.body.append(box);
  const height = box.offsetHeight;
  box.remove();
  return height;
}

function showTable(node, rows) {
  let widget = node.widgets?.find((each) => each.name === "i2v_table");
  if (!widget) {
    const box = document.createElement("div");
    box.style.cssText = BOX;
    const getMinHeight = () => widget?.leastHeight ?? 0;
    widget = node.addDOMWidget("i2v_table", "i2v_table", box, { serialize: false, getMinHeight });
    widget.serialize = false; // neither a workflow nor a program is told of it
  }
  const table = tableOf(rows);
  widget.leastHeight = Math.min(heightOf(table, node.size[0] - MARGIN, "font-size:11px;") + 8, MOST_HEIGHT);
  widget.element.replaceChildren(table);
  const least = node.computeSize();
  node.setSize([Math.max(node.size[0], least[0]), Math.max(node.size[1], least[1])]);
  node.setDirtyCanvas?.(true, true);
}

// Whole, and also where the server answers for an output node from its cache and so says nothing of its work.
function showText(node, text) {
  if (window.LiteGraph?.vueNodesMode || node.graph !== app.canvas?.graph) return;
  api.dispatchCustomEvent?.("progress_text", { nodeId: String(node.id), text });
  const widget = node.widgets?.find((each) => each.name === TEXT);
  if (!widget?.options) return;
  const needed = heightOf(text, node.size[0] - 2 * WIDGET_MARGIN, TEXT_STYLE);
  const height = Math.min(needed, MOST_TEXT) + 2 * WIDGET_MARGIN;
  widget.options.getMinHeight = () => height;
  requestAnimationFrame(() => {
    const lack = height - (widget.computedHeight ?? height);
    if (lack > 0) node.setSize([node.size[0], node.size[1] + lack]);
    node.setDirtyCanvas?.(true, true);
  });
}

function setting(name) {
  return app.extensionManager?.setting?.get(name);
}

// As advanced they have the menu's entry; a widget that is only that would leave a gap.
function foldAdvanced(node) {
  const folded = (node.widgets ?? []).filter((widget) => widget.options?.advanced);
  if (!folded.length || setting("Comfy.Node.AlwaysShowAdvancedWidgets")) return;
  for (const widget of folded) {
    widget.advanced = true;
    Object.defineProperty(widget, "hidden", { configurable: true, get: () => !node.showAdvanced, set() {} });
  }
  node.setSize([node.size[0], node.computeSize()[1]]); // it was given room for all of them
}

// What somebody has set or connected is not hidden from them.
function unfoldWhatIsSet(node) {
  const { required, optional } = node.constructor.nodeData?.input ?? {};
  const initial = (name) => (required?.[name] ?? optional?.[name])?.[1]?.default;
  const linked = (name) => node.inputs?.some((input) => input.widget?.name === name && input.link != null);
  const isSet = ({ advanced, name, value }) => advanced && (value !== initial(name) || linked(name));
  if (node.widgets?.some(isSet)) node.showAdvanced = true;
}

// As in the core's Save nodes, which alone the page does it for: the server knows no titles of nodes. It understands
// dates too, but by its own clock; hours and minutes stand in names without a colon.
const PLACEHOLDER = /%(?:date:[^%]*|[^%.]+\.[^%.]+)%/g;

function filled(text) {
  const replace = window.comfyAPI?.utils?.applyTextReplacements;
  if (!replace) return text;
  return String(text).replace(PLACEHOLDER, (placeholder) => {
    try {
      const words = replace(app.rootGraph ?? app.graph, placeholder);
      return placeholder.startsWith("%date:") ? words.replaceAll(":", "-") : words;
    } catch {
      return placeholder; // an older page calls it otherwise
    }
  });
}

function fillPrefix(node) {
  const widget = node.widgets?.find(({ name }) => name === "filename_prefix");
  if (widget) widget.serializeValue = () => filled(widget.value);
}

const extension = {
  name: NAME,

  settings: [
    {
      id: "I2VTensorRT.BuildWhenIdle", // nodes/host/idle.py reads it
      category: ["I2V TensorRT", "Engines", "BuildWhenIdle"],
      name: "Build engines while the queue is empty",
      tooltip:
        "Clips run in eager PyTorch until their engines are there. Off: engines are built only where on_missing is " +
        "build, where eager PyTorch does not fit, or by the Engine Builder.",
      type: "boolean",
      defaultValue: true,
    },
  ],

  async init() {
    // Older pages have no such call, and their lists then show the words that programs write.
    translations = (await api.getCustomNodesI18n?.().catch(() => null)) ?? {};
  },

  nodeCreated(node) {
    const face = faceOf(node);
    if (!face) return;
    node.color = face.title; // the title alone: a whole node in colour outshouts its pictures
    foldAdvanced(node);
    fillPrefix(node);
    node.setSize([Math.max(node.size[0], face.width), Math.max(node.size[1], face.height ?? 0)]);
    const { onExecuted } = node;
    node.onExecuted = function (output, ...rest) {
      onExecuted?.call(this, output, ...rest);
      if (output?.table) showTable(this, output.table);
      if (output?.text) showText(this, output.text.join("\n"));
    };
    for (const widget of node.widgets ?? []) {
      if (widget.type !== "combo" || widget.options.getOptionLabel) continue;
      widget.options.getOptionLabel = (value) => choices(node.comfyClass, widget.name)?.[value] ?? value ?? "";
    }
  },

  loadedGraphNode(node) {
    if (faceOf(node)) unfoldWhatIsSet(node);
  },
};

// A second copy of the pack brings the same script.
if (!app.extensions?.some(({ name }) => name === NAME)) app.registerExtension(extension);
