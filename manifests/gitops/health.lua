-- The health of a PodFlow for Argo CD: resource.customizations.health.podway.dev_PodFlow in argocd-cm
-- (argocd-cm.yaml beside this file). It tells of a pod's start; what comes after is the Pod's own health.
local health = { status = "Progressing", message = "the start is not recorded yet" }
if obj.status == nil or obj.status.conditions == nil then
  return health
end
for _, condition in ipairs(obj.status.conditions) do
  if condition.type == "Succeeded" then
    if condition.status == "True" then
      health.status = "Healthy"
      health.message = "Ready in " .. (obj.status.total or "?")
    elseif condition.status == "False" then
      health.status = "Degraded"
      health.message = condition.reason .. ": " .. (condition.message or "")
    else
      health.message = "in " .. (obj.status.phase or "?")
    end
    return health
  end
end
return health
