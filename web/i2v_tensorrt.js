// What a node's schema cannot tell the page: a colour by the node's work, a first size, and the choices of its
// lists in the user's language (the page itself translates names and tooltips, but no choices).
import { api } from "../../scripts/api.js";
import { app } from "../../scripts/app.js";

const BLUE = "#263759";
const BROWN = "#54371f";
const PURPLE = "#48305c";
const GREEN = "#24492f";

// Of the title: blue opens and compiles models, brown says what to make, purple makes it, green shows it.
const FACES = {
  I2VTRT_ModelLoader: { title: BLUE, width: 300 },
  I2VTRT_EngineBuilder: { title: BLUE, width: 320 },
  I2VTRT_EngineLoader: { title: BLUE, width: 300 },
  I2VTRT_Conditioning: { title: BROWN, width: 400, height: 420 },
  I2VTRT_DDIMSampler: { title: PURPLE, width: 300 },
  I2VTRT_VAEDecode: { title: GREEN, width: 260 },
  I2VTRT_SaveVideo: { title: GREEN, width: 340 },
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
    node.color = face.title; // the title alone: a whole node in colour outshouts its pictures
    node.setSize([Math.max(node.size[0], face.width), Math.max(node.size[1], face.height ?? 0)]);
    for (const widget of node.widgets ?? []) {
      if (widget.type !== "combo" || widget.options.getOptionLabel) continue;
      widget.options.getOptionLabel = (value) => choices(node.comfyClass, widget.name)?.[value] ?? value ?? "";
    }
  },
});
