// The page shows an extension's templates in the order of the server's list, which is the disk's: the quick start might
// stand anywhere. Here they come in the order in which people want them.
import { api } from "../../scripts/api.js";

// As in common/workflow_names.py.
const TITLES = [
  "First video",
  "Two prompts for one picture",
  "Smoother motion",
  "Larger in two phases",
  "Larger with an upscale model",
  "ONNX network on every frame",
  "Stable Video Diffusion",
  "Wan 2.1 14B",
  "Wan 2.2 A14B",
  "Wan 2.2 TI2V-5B",
  "DynamiCrafter from one picture",
  "DynamiCrafter between pictures",
  "DynamiCrafter loop",
  "Mixed with core nodes",
  "Core model through engines",
  "Low memory",
  "Compare eager and engine",
  "Prebuild engines",
];

// This script is served as /extensions/FOLDER/templates.js, and the server's list goes by the folder too.
const folder = () => decodeURIComponent(new URL(import.meta.url).pathname.split("/").at(-2));

// Names that are not listed come last, as they came.
function inOrder(names) {
  const place = (name) => (TITLES.includes(name) ? TITLES.indexOf(name) : TITLES.length);
  return [...names].sort((one, other) => place(one) - place(other));
}

// The answer itself where ours is not in it, or not in the form that is known.
function ordered(answer) {
  try {
    const names = answer[folder()];
    return Array.isArray(names) ? { ...answer, [folder()]: inOrder(names) } : answer;
  } catch {
    return answer;
  }
}

const { getWorkflowTemplates } = api;
if (getWorkflowTemplates) {
  api.getWorkflowTemplates = async function (...given) {
    return ordered(await getWorkflowTemplates.apply(this, given));
  };
}
