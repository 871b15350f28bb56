-- Health of a podgraft.dev/LivePatch for Argo CD, from its kstatus conditions.
local hs = {status = "Progressing", message = "waiting for the podgraft operator"}
local status = obj.status
if status == nil or status.conditions == nil then
  return hs
end
-- What the operator said about an older spec says nothing about this one.
if status.observedGeneration ~= obj.metadata.generation then
  return hs
end
for _, condition in ipairs(status.conditions) do
  if condition.status == "True" then
    hs.message = (condition.reason or "") .. ": " .. (condition.message or "")
    if condition.type == "Ready" then
      hs.status = "Healthy"
      return hs
    elseif condition.type == "Stalled" then
      hs.status = "Degraded"
      return hs
    elseif condition.reason == "Paused" or condition.reason == "StepPaused" then
      hs.status = "Suspended"
      return hs
    end
  end
end
return hs
