select i.intake, i.kind, i.source
from pillarbox.intake i
where i.name = $1
