// What a node's schema cannot tell the page: a colour by the node's work, a first size, and the choices of its
// lists in the user's language (the page itself translates names and tooltips, but no choices).
import { api } from "../../scripts/api.js";
import { app } from "../../scripts/app.js";

const BLUE = { color: "#223", bgcolor: "#335" };
const BROWN = { color: "#332922", bgcolor: "#593930" };
const PURPLE = { color: "#323", bgcolor: "#535" };
const GREEN = { color: "#232", bgcolor: "#353" };

// Blue opens and compiles models, brown says what to make, purple makes it, green shows it.
const FACES = {
  I2VTRT_ModelLoader: { ...BLUE, width: 300 },
  I2VTRT_EngineBuilder: { ...BLUE, width: 320 },
  I2VTRT_EngineLoader: { ...BLUE, width: 300 },
  I2VTRT_Conditioning: { ...BROWN, width: 400, height: 420 },
  I2VTRT_DDIMSampler: { ...PURPLE, width: 300 },
  I2VTRT_VAEDecode: { ...GREEN, width: 260 },
  I2VTRT_SaveVideo: { ...GREEN, width: 340 },
};

let translations = {};

function choices(nodeName, inputName) {
  const locale = app.extensionManager?.setting?.get("Comfy.Locale") ?? "en";
  return translations[locale]?.nodeDefs?.[nodeName]?.inputs?.[inputName]?.options;
}

app.registerExtension({
  name: "I2VTensorRT.Face",

  async init() {
    // Older pages have no such call, and their lists then show the words that programs write.
    translations = (await api.getCustomNodesI18n?.().catch(() => null)) ?? {};
  },

  nodeCreated(node) {
    const face = FACES[node.comfyClass];
    if (!face) return;
    node.color = face.color;
    node.bgcolor = face.bgcolor;
    node.setSize([Math.max(node.size[0], face.width), Math.max(node.size[1], face.height ?? 0)]);
    for (const widget of node.widgets ?? []) {
      if (widget.type !== "combo" || widget.options.getOptionLabel) continue;
      widget.options.getOptionLabel = (value) => choices(node.comfyClass, widget.name)?.[value] ?? value ?? "";
    }
  },
});
